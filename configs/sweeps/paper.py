"""The paper's strategies and ablations (tables 2, 3 and 4), then the rivals; the main rows at three seeds.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/paper.py --sweep_jobs=4 --config.run_dir=runs/paper

A seed changes LoRA's start, the order of the samples, their prompts t' and sampled answers, and nothing of the data. So
vanilla differs by seed where answers are sampled and has one run otherwise.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

SEEDS = 3


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    yield "vanilla", {"strategy": "vanilla"}
    for strategy in ("sft_full", "sft_shallow_mirror", "sft_shallow_parallel", "sft_deep"):  # table 2
        yield strategy, {"strategy": strategy}
    yield "rrs", {}  # table 3
    yield "rrs_without_penalty", {"penalty.weight": 0.0}
    for share in (12.5, 25.0, 51.0):  # table 4
        if share != config.rrs.top_m:  # which is `rrs`
            yield f"rrs_top{share:g}", {"rrs.top_m": share}
    for strategy in ("rrs_plus", "rerouting", "steering", "steering_conditional", "system_prompt"):
        yield strategy, {"strategy": strategy}
    several = ["rrs", "rrs_plus", "sft_shallow_mirror"] + ([] if config.generate.greedy else ["vanilla"])
    for seed in range(config.seed + 1, config.seed + SEEDS):  # last: by then what they need is compiled
        for strategy in several:
            yield f"{strategy}-seed{seed}", {"strategy": strategy, "seed": seed}
