"""The paper's strategies and ablations (tables 2, 3 and 4), then the rivals; the main rows at three seeds.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/paper.py --sweep_jobs=4 --config.run_dir=runs/paper

A seed changes LoRA's start, the order of the samples, their prompts t' and sampled answers, and nothing of the data. So
vanilla differs by seed where answers are sampled and has one run otherwise.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

SEEDS = 3


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    yield from seeds(config, "rrs", {})  # table 3; first, since other runs take up what it has made
    yield from seeds(config, "vanilla", {"strategy": "vanilla"}, 1 if config.generate.greedy else SEEDS)
    yield from seeds(config, "sft_shallow_mirror", {"strategy": "sft_shallow_mirror"})  # table 2
    for strategy in ("sft_full", "sft_shallow_parallel", "sft_deep"):
        yield strategy, {"strategy": strategy}
    yield from seeds(config, "rrs_plus", {"strategy": "rrs_plus"})
    yield "rrs_without_penalty", {"penalty.weight": 0.0}
    for share in (12.5, 25.0, 51.0):  # table 4
        if share != config.rrs.top_m:  # which is `rrs`
            yield f"rrs_top{share:g}", {"rrs.top_m": share}
    for strategy in ("rerouting", "steering", "steering_conditional", "system_prompt"):
        yield strategy, {"strategy": strategy}


def seeds(config: ConfigDict, name: str, overrides: dict, number: int = SEEDS) -> Iterator[tuple[str, dict]]:
    """The run with the config's seed, and others with the seeds behind it."""
    yield name, overrides
    for seed in range(config.seed + 1, config.seed + number):
        yield f"{name}-seed{seed}", overrides | {"seed": seed}
