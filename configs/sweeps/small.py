"""The short training of configs/mini_rrs.py: rate, layers, passes and batch.

    python launch.py --config=configs/mini_rrs.py --sweep=configs/sweeps/small.py --config.run_dir=runs/small

Asked are the pairs of the starter set's training file that no row is trained on; they are written to run_dir.
"""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.data.starter import CATEGORIES, choose_rows
from rrs_jax.files import write_jsonl

SEEDS = 2
PAIRS = 10  # of each of the categories that are trained on
SETTINGS = {  # first layer with an adapter of 24, rate, passes, batch
    "l16_r15_e2": (16, 1.5e-3, 2, 4),
    "l16_r12_e2": (16, 1.2e-3, 2, 4),
    "l16_r10_e2": (16, 1e-3, 2, 4),
    "l16_r20_e2": (16, 2e-3, 2, 4),
    "l16_r10_e2_b2": (16, 1e-3, 2, 2),
    "l16_r7_e2_b2": (16, 7e-4, 2, 2),
    "l16_r10_e3": (16, 1e-3, 3, 4),
    "l18_r15_e2_b2": (18, 1.5e-3, 2, 2),
    "l20_r20_e2_b2": (20, 2e-3, 2, 2),
    "l12_r10_e2": (12, 1e-3, 2, 4),
    "l12_r7_e2_b2": (12, 7e-4, 2, 2),
    "l12_r5_e3": (12, 5e-4, 3, 4),
    "l8_r7_e2": (8, 7e-4, 2, 4),
}
ADDED = {
    "lighter": {"rrs.harmful_weight": 0.7},
    "top25": {"rrs.top_m": 25.0},
    "hinge": {"rrs.benign_target": "hinge"},
    "own": {"rrs.target": "own"},
    "audio": {"train.audio_share": 0.25},
    "rank16": {"lora.rank": 16, "lora.alpha": 32.0},
    "twins": {"train.twins_together": True},
}


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    unseen = choose_rows("train", pairs_per_category=None)[2 * PAIRS * len(CATEGORIES) :]
    file = Path(config.run_dir) / "unseen.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(file, [{name: row[name] for name in ("id", "pair_id", "label", "category", "question")} for row in unseen])
    asked = {"data.pairs_per_category": PAIRS, "evaluate.questions": (f"jsonl:{file}",)}
    rows = {}
    for name, (first, rate, epochs, batch) in SETTINGS.items():
        rows[name] = {
            "lora.layers": first, "train.learning_rate": rate, "train.epochs": epochs, "train.batch_size": batch,
        }  # fmt: skip
    rows |= {f"l16_r15_e2_{name}": rows["l16_r15_e2"] | added for name, added in ADDED.items()}
    for seed in range(config.seed, config.seed + SEEDS):
        for name, fields in rows.items():
            yield name if seed == config.seed else f"{name}-seed{seed}", fields | asked | {"seed": seed}
