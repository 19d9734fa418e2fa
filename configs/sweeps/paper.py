"""The paper's strategies and ablations (tables 2, 3 and 4), then the rivals.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/paper.py --config.run_dir=runs/paper
"""

from collections.abc import Iterator

from ml_collections import ConfigDict


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    yield "vanilla", {"strategy": "vanilla"}
    for strategy in ("sft_full", "sft_shallow_mirror", "sft_shallow_parallel", "sft_deep"):  # table 2
        yield strategy, {"strategy": strategy}
    yield "rrs", {}  # table 3
    yield "rrs_without_penalty", {"penalty.weight": 0.0}
    for share in (12.5, 25.0, 51.0):  # table 4
        if share != config.rrs.top_m:  # which is `rrs`
            yield f"rrs_top{share:g}", {"rrs.top_m": share}
    for strategy in ("rerouting", "steering", "steering_conditional", "system_prompt", "rrs_plus"):
        yield strategy, {"strategy": strategy}
