"""The preset `rrs_plus`, chosen by `plus_choice.py`, on questions that nothing was chosen by, at three seeds.

    python launch.py --config=configs/mini_rrs.py:full --sweep=benchmarks/research/plus_check.py \\
        --sweep_jobs=4 --config.run_dir=runs/plus_check

To check another row, give its fields: they win over those of `PLUS` in rrs_jax/config/strategy_table.py.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

SEEDS = 3


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    yield "vanilla", {"strategy": "vanilla", "data.eval_set": "check"}
    for strategy in ("rrs", "rrs_plus"):
        for seed in range(config.seed, config.seed + SEEDS):
            name = strategy if seed == config.seed else f"{strategy}-seed{seed}"
            yield name, {"strategy": strategy, "seed": seed, "data.eval_set": "check"}
