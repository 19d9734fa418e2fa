"""The short training of configs/mini_rrs.py: rate, layers, passes and batch.

    python launch.py --config=configs/mini_rrs.py --sweep=configs/sweeps/small.py --config.run_dir=runs/small

Asked are the pairs of the starter set's training file that no row is trained on, and of rows that are trained on all of
them the evaluation pairs that the short run leaves out; both are written to run_dir.
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
    "l20_r10_e4": (20, 1e-3, 4, 4),
    "l20_r10_e4_b2": (20, 1e-3, 4, 2),
    "l20_r5_e8": (20, 5e-4, 8, 4),
    "l18_r7_e4": (18, 7e-4, 4, 4),
    "l16_r5_e4": (16, 5e-4, 4, 4),
    "l16_r5_e6": (16, 5e-4, 6, 4),
    "l16_r3_e8": (16, 3e-4, 8, 4),
    "l16_r7_e4_b8": (16, 7e-4, 4, 8),
    "l12_r3_e4": (12, 3e-4, 4, 4),
    "l8_r5_e3": (8, 5e-4, 3, 4),
    "l0_r3_e4": (0, 3e-4, 4, 4),
    "l0_r05_e20_b16": (0, 5e-5, 20, 16),
}
ALL_PAIRS = {  # the same on all twenty pairs of a category; asked are the evaluation pairs that README's run leaves out
    "p20_l20_r10_e2": (20, 1e-3, 2, 4),
    "p20_l20_r15_e2": (20, 1.5e-3, 2, 4),
    "p20_l20_r10_e3": (20, 1e-3, 3, 4),
    "p20_l18_r10_e2": (18, 1e-3, 2, 4),
    "p20_l16_r10_e2": (16, 1e-3, 2, 4),
    "p20_l16_r7_e2": (16, 7e-4, 2, 4),
    "p20_l16_r5_e3": (16, 5e-4, 3, 4),
    "p20_l16_r15_e1": (16, 1.5e-3, 1, 4),
}
README_PAIRS = 3  # of each category, that README's run asks
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
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    training = choose_rows("train", pairs_per_category=None)[2 * PAIRS * len(CATEGORIES) :]
    evaluation = choose_rows("eval", pairs_per_category=None)[2 * README_PAIRS * len(CATEGORIES) :]
    asked = {"data.pairs_per_category": PAIRS} | _questions(folder / "unseen.jsonl", training)
    asked_all = {"data.pairs_per_category": None} | _questions(folder / "unseen_evaluation.jsonl", evaluation)
    rows = {name: _fields(*setting) | asked for name, setting in SETTINGS.items()}
    rows |= {f"l16_r15_e2_{name}": rows["l16_r15_e2"] | added for name, added in ADDED.items()}
    rows["l16_r5_e4_rank16"] = rows["l16_r5_e4"] | ADDED["rank16"]
    rows |= {name: _fields(*setting) | asked_all for name, setting in ALL_PAIRS.items()}
    rows["p10_l16_r15_e2"] = rows["l16_r15_e2"] | asked_all | {"data.pairs_per_category": PAIRS}
    for seed in range(config.seed, config.seed + SEEDS):
        for name, fields in rows.items():
            yield name if seed == config.seed else f"{name}-seed{seed}", fields | {"seed": seed}


def _fields(first: int, rate: float, epochs: int, batch: int) -> dict:
    return {
        "lora.layers": first, "train.learning_rate": rate, "train.epochs": epochs, "train.batch_size": batch,
    }  # fmt: skip


def _questions(file: Path, rows: list[dict]) -> dict:
    write_jsonl(file, [{name: row[name] for name in ("id", "pair_id", "label", "category", "question")} for row in rows])
    return {"evaluate.questions": (f"jsonl:{file}",)}
