"""Each addition to RRS by itself, at one seed: what lessens over-refusal, and what it costs in safety.

    python launch.py --config=configs/mini_rrs.py:full --sweep=benchmarks/research/plus.py --sweep_jobs=4 \\
        --config.run_dir=runs/plus

`plus_choice.py` measures the best of them at three seeds, `plus_check.py` the winner on questions that
nothing was chosen by. The sweep ends with a ranking (`rrs_jax.report.ranking`).
"""

from collections.abc import Iterator

KEPT = {"data.everyday": None, "data.contrast": None}
MIRRORED = KEPT | {"data.contrast_role": "mirror"}
HINGE = KEPT | {"rrs.benign_target": "hinge"}
ADDITIONS = {
    "own": {"rrs.target": "own"},
    "category": {"rrs.target": "category"},
    "whiten": {"rrs.whiten": 0.1},
    "project": {"rrs.project": 8},
    "two_tokens": {"rrs.refusal_tokens": ("I", "Sorry")},
    "text_share": {"train.text_share": 0.33},
    "audio_share": {"train.audio_share": 0.25},
    "positions": {"rrs.positions": 4},
    "voices": {"data.voices_per_question": 3},
    "lighter": {"rrs.keep_weight": 0.3},
    "twice": {"rrs.keep_weight": 2.0},
    "penalty": {"penalty.weight": 100.0},
}
PACE = {
    "faster": {"train.learning_rate": 1e-4},
    "fastest": {"train.learning_rate": 2e-4},
    "longer": {"train.epochs": 20},
}
STRONGER = {
    **PACE,
    "harmful_twice": {"rrs.harmful_weight": 2.0},
    "faster_harmful_twice": PACE["faster"] | {"rrs.harmful_weight": 2.0},
    "faster_text_share": PACE["faster"] | ADDITIONS["text_share"],
    "faster_voices": PACE["faster"] | ADDITIONS["voices"],
}
ROWS = {
    "rrs": {},
    "everyday": {"data.everyday": None},
    "contrast": {"data.contrast": None},
    "kept": KEPT,
    "contrast_mirrored": {"data.contrast": None, "data.contrast_role": "mirror"},
    "mirrored": MIRRORED,
    # Without the pull on rewrites.
    "rewrites_keep": {"rrs.benign_target": "keep"},
    "kept_rewrites_keep": KEPT | {"rrs.benign_target": "keep"},
    "hinge": {"rrs.benign_target": "hinge"},
    "kept_hinge": HINGE,
    "kept_hinge_near": HINGE | {"rrs.margin": 2.0},
    **{f"kept_{name}": KEPT | fields for name, fields in ADDITIONS.items()},
    **PACE,
    "twins": {"train.twins_together": True},
    **{f"kept_{name}": KEPT | fields for name, fields in STRONGER.items()},
    **{f"mirrored_{name}": MIRRORED | fields for name, fields in STRONGER.items()},
    # The best of these have room on the borderline questions, and none on the harmful ones.
    "kept_longer_harmful_twice": KEPT | PACE["longer"] | {"rrs.harmful_weight": 2.0},
    "mirrored_faster_harmful_4": MIRRORED | PACE["faster"] | {"rrs.harmful_weight": 4.0},
    "mirrored_faster_harmful_4_twins": (
        MIRRORED | PACE["faster"] | {"rrs.harmful_weight": 4.0, "train.twins_together": True}
    ),
    "mirrored_faster_harmful_6": MIRRORED | PACE["faster"] | {"rrs.harmful_weight": 6.0},
    "mirrored_fastest_harmful_4": MIRRORED | PACE["fastest"] | {"rrs.harmful_weight": 4.0},
    "mirrored_longer_harmful_4": MIRRORED | PACE["longer"] | {"rrs.harmful_weight": 4.0},
    "contrast_mirrored_faster_harmful_twice": (
        {"data.contrast": None, "data.contrast_role": "mirror", "rrs.harmful_weight": 2.0} | PACE["faster"]
    ),
}


def runs(_) -> Iterator[tuple[str, dict]]:
    yield from ROWS.items()
