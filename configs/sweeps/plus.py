"""RRS with each addition of docs/strategies.md: what lessens over-refusal, and what it costs in safety.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/plus.py --config.run_dir=runs/plus
"""

from collections.abc import Iterator

KEPT = {"data.everyday": None, "data.contrast": None}
KEEP = KEPT | {"rrs.benign_target": "keep"}


def runs(_) -> Iterator[tuple[str, dict]]:
    yield "rrs", {}
    yield "everyday", {"data.everyday": None}
    yield "contrast", {"data.contrast": None}
    yield "kept", KEPT
    yield "rewrites_keep", {"rrs.benign_target": "keep"}
    yield "hinge", {"rrs.benign_target": "hinge"}
    yield "kept_rewrites_keep", KEEP
    yield "kept_hinge", KEPT | {"rrs.benign_target": "hinge"}
    yield "kept_heavier", KEEP | {"rrs.keep_weight": 3.0}
    yield "own", KEEP | {"rrs.target": "own"}
    yield "category", KEEP | {"rrs.target": "category"}
    yield "whiten", KEEP | {"rrs.whiten": 0.1}
    yield "project", KEEP | {"rrs.project": 8}
    yield "two_tokens", KEEP | {"rrs.refusal_tokens": ("I", "Sorry")}
    yield "text_share", KEEP | {"train.text_share": 0.33}
    yield "positions", KEEP | {"rrs.positions": 4}
