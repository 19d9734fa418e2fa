"""Settings from which `rrs_plus` was chosen, at three seeds, on all evaluation questions.

    python launch.py --config=configs/mini_rrs.py:full --sweep=benchmarks/research/plus_choice.py \\
        --sweep_jobs=8 --config.run_dir=runs/plus_choice

One seed moves a rate by five to ten points, so it is chosen by means. A row's name says what its losses
count: harmful questions, behind `rewrites` their rewrites, behind `heard` harmful questions by audio alone.
`second` (two rewrites a pair), `read` (`rrs.read_share`, `half` is 0.5) and `text` (a text-only share) stand
before both weights of harmful questions.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

SEEDS = 3
MIRRORED = {
    "data.everyday": None,
    "data.contrast": None,
    "data.contrast_role": "mirror",
    "train.learning_rate": 1e-4,
}
MEAN = MIRRORED | {"train.learning_rate": 2e-4, "train.average": 0.5}
LONGER_MEAN = MEAN | {"train.epochs": 20}


def counts(harmful: float, rewrites: float = 1.0, heard: float | None = None) -> dict:
    fields = {"rrs.harmful_weight": harmful, "rrs.rewrite_weight": rewrites}
    return (
        fields if heard is None else fields | {"rrs.harmful_audio_weight": heard, "train.audio_share": 0.25}
    )


ROWS = {
    "rrs": {},
    "contrast_4": MIRRORED | counts(4.0),
    "heard_4_8": MIRRORED | counts(4.0, heard=8.0),
    "heard_3_9": MIRRORED | counts(3.0, heard=9.0),
    "heard_2_8": MIRRORED | counts(2.0, heard=8.0),
    "rewrites_4_2": MIRRORED | counts(4.0, 2.0),
    "rewrites_4_2_heard_12": MIRRORED | counts(4.0, 2.0, 12.0),
    "rewrites_3_2_heard_9": MIRRORED | counts(3.0, 2.0, 9.0),
    "heard_3_9_mean": MEAN | counts(3.0, heard=9.0),
    "rewrites_4_2_mean": MEAN | counts(4.0, 2.0),
    "rewrites_6_2_heard_12_mean": MEAN | counts(6.0, 2.0, 12.0),
    "rewrites_4_2_voices_mean": MEAN | counts(4.0, 2.0) | {"data.voices_per_question": 3, "train.epochs": 7},
    "heard_3_9_longer_mean": LONGER_MEAN | counts(3.0, heard=9.0),
    "rewrites_4_2_heard_12_longer_mean": LONGER_MEAN | counts(4.0, 2.0, 12.0),
    "heard_2_12_longer_mean": LONGER_MEAN | counts(2.0, heard=12.0),
    "heard_3_10_longer_mean": LONGER_MEAN | counts(3.0, heard=10.0),
    "second_4_12_longer_mean": LONGER_MEAN | counts(4.0, heard=12.0) | {"data.rewrites_per_pair": 2},
    "read_half_3_9_longer_mean": LONGER_MEAN | counts(3.0, heard=9.0) | {"rrs.read_share": 0.5},
    "read_1.5_5_longer_mean": LONGER_MEAN | counts(1.5, heard=5.0) | {"rrs.read_share": 1.0},
    "read_1_3_longer_mean": LONGER_MEAN | counts(1.0, heard=3.0) | {"rrs.read_share": 1.0},
    "text_1_4_longer_mean": LONGER_MEAN | counts(1.0, heard=4.0) | {"train.text_share": 0.25},
}


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    for seed in range(config.seed, config.seed + SEEDS):
        for name, fields in ROWS.items():
            named = name if seed == config.seed else f"{name}-seed{seed}"
            yield named, fields | {"seed": seed}
