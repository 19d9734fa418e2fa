"""What configs/sweeps/plus.py led to, on the half of the evaluation questions that it was not chosen by, at three seeds.

    python launch.py --config=configs/mini_rrs.py:full --sweep=configs/sweeps/plus_check.py --sweep_jobs=4 \\
        --config.run_dir=runs/plus_check

To check another row of plus.py, give its fields: they win over those of `PLUS` in rrs_jax/strategy_table.py.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

SEEDS = 3


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    yield "vanilla", {"strategy": "vanilla", "evaluate.split": "check"}
    for strategy in ("rrs", "rrs_plus"):
        for seed in range(config.seed, config.seed + SEEDS):
            name = strategy if seed == config.seed else f"{strategy}-seed{seed}"
            yield name, {"strategy": strategy, "seed": seed, "evaluate.split": "check"}
