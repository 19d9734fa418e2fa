"""RRS with each addition of docs/strategies.md: what lessens over-refusal, and what it costs in safety.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/plus.py --sweep_jobs=4 --config.run_dir=runs/plus

Measured on the half `choose` of the evaluation questions; configs/sweeps/plus_check.py measures the winner on the other.
The sweep ends with a ranking (`rrs_jax.report.ranking`).
"""

from collections.abc import Iterator

KEPT = {"data.everyday": None, "data.contrast": None}
KEEP = KEPT | {"rrs.benign_target": "keep"}
HINGE = KEPT | {"rrs.benign_target": "hinge"}
ADDITIONS = {
    "own": {"rrs.target": "own"},
    "category": {"rrs.target": "category"},
    "whiten": {"rrs.whiten": 0.1},
    "project": {"rrs.project": 8},
    "two_tokens": {"rrs.refusal_tokens": ("I", "Sorry")},
    "text_share": {"train.text_share": 0.33},
    "positions": {"rrs.positions": 4},
}
PACE = {
    "faster": {"train.learning_rate": 1e-4},
    "longer": {"train.epochs": 20},
}
ROWS = {
    "rrs": {},
    "everyday": {"data.everyday": None},
    "contrast": {"data.contrast": None},
    "kept": KEPT,
    "rewrites_keep": {"rrs.benign_target": "keep"},
    "hinge": {"rrs.benign_target": "hinge"},
    "kept_rewrites_keep": KEEP,
    "kept_hinge": HINGE,
    "kept_heavier": KEEP | {"rrs.keep_weight": 3.0},
    **{name: KEEP | fields for name, fields in ADDITIONS.items()},
    "much_heavier": KEEP | {"rrs.keep_weight": 10.0},
    "hinge_heavier": HINGE | {"rrs.keep_weight": 3.0},
    "hinge_near": HINGE | {"rrs.margin": 2.0},
    # Without the pull on rewrites over-refusal is several times as large, so the others are tried beside it too.
    **{f"kept_{name}": KEPT | fields for name, fields in ADDITIONS.items()},
    "kept_lighter": KEPT | {"rrs.keep_weight": 0.3},
    "kept_twice": KEPT | {"rrs.keep_weight": 2.0},
    "kept_penalty": KEPT | {"penalty.weight": 100.0},
    **PACE,
    **{f"kept_{name}": KEPT | fields for name, fields in PACE.items()},
    "kept_faster_longer": KEPT | PACE["faster"] | PACE["longer"],
    "kept_faster_text_share": KEPT | PACE["faster"] | ADDITIONS["text_share"],
}


def runs(_) -> Iterator[tuple[str, dict]]:
    for name, overrides in ROWS.items():
        yield name, overrides | {"evaluate.split": "choose"}
