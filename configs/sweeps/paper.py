"""The paper's strategies and ablations (tables 2, 3 and 4), then the rivals; what is trained has three seeds.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/paper.py --sweep_jobs=8 \\
        --config.run_dir=runs/paper

A seed changes LoRA's start, the order of the samples, their prompts t' and sampled answers, and nothing of
the data. So what is not trained differs by seed where answers are sampled and has one run otherwise.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from rrs_jax.config.strategy_table import STRATEGY_TABLE

SEEDS = 3


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the fields of each run."""
    rows = {"vanilla": {"strategy": "vanilla"}}
    for strategy in ("sft_full", "sft_shallow_mirror", "sft_shallow_parallel", "sft_deep"):  # table 2
        rows[strategy] = {"strategy": strategy}
    rows["rrs"] = {"strategy": "rrs"}  # table 3
    rows["rrs_without_penalty"] = rows["rrs"] | {"penalty.weight": 0.0}
    for share in (12.5, 25.0, 51.0):  # table 4
        if share != config.rrs.top_m:  # which is `rrs`
            rows[f"rrs_top{share:g}"] = rows["rrs"] | {"rrs.top_m": share}
    for strategy in ("rrs_plus", "rerouting", "harc", "steering", "steering_conditional", "system_prompt"):
        rows[strategy] = {"strategy": strategy}
    rows["harc_without_penalty"] = rows["harc"] | {"penalty.weight": 0.0}  # as in the original
    yield from rows.items()
    for seed in range(config.seed + 1, config.seed + SEEDS):  # last: by then what they need is compiled
        for name, fields in rows.items():
            if STRATEGY_TABLE[fields["strategy"]].trains or not config.generate.greedy:
                yield f"{name}-seed{seed}", fields | {"seed": seed}
