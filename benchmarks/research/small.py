"""Settings of the short training of configs/mini_rrs.py: layers, rate, passes, batch, and what steadies it.

    python launch.py --config=configs/mini_rrs.py --sweep=benchmarks/research/small.py \\
        --config.run_dir=runs/small

The questions are all those that the README's run does not ask (`data.eval_set=check`).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

SEEDS = 3
ASKED = {"data.eval_set": "check", "data.eval_pairs_per_category": None, "data.borderline": None}
MEAN = {"train.average": 0.5}
TWINS, ALONE = {"train.twins_together": True}, {"train.twins_together": False}
FEWER, FOURTEEN, ALL_PAIRS = ({"data.pairs_per_category": pairs} for pairs in (10, 14, None))  # all is twenty
CONSTANT = {"train.schedule": "constant"}
SETTINGS = {  # first layer with an adapter of 24, rate, passes, batch; and what else
    "l16_r15_e2": (16, 1.5e-3, 2, 4, ALONE),
    "l16_r15_e2_mean": (16, 1.5e-3, 2, 4, ALONE | MEAN),
    "l16_r10_e2_twins": (16, 1e-3, 2, 4, TWINS),
    "l16_r10_e2_twins_mean": (16, 1e-3, 2, 4, TWINS | MEAN),
    "l16_r7_e2_twins_mean": (16, 7e-4, 2, 4, TWINS | MEAN),
    "l16_r5_e2_twins_mean": (16, 5e-4, 2, 4, TWINS | MEAN | CONSTANT),
    "l16_r10_e2_b8_twins_mean": (16, 1e-3, 2, 8, TWINS | MEAN),
    "l18_r10_e2_twins_mean": (18, 1e-3, 2, 4, TWINS | MEAN),
    "l20_r10_e4_twins_mean": (20, 1e-3, 4, 4, TWINS | MEAN),
    "l20_r5_e4_twins_mean": (20, 5e-4, 4, 4, TWINS | MEAN),
    "l16_r5_e4_twins_mean": (16, 5e-4, 4, 4, TWINS | MEAN),
    "l16_r3_e8_twins_mean": (16, 3e-4, 8, 4, TWINS | MEAN),
    "l12_r5_e3_twins_mean": (12, 5e-4, 3, 4, TWINS | MEAN),
    "l8_r5_e3_twins_mean": (8, 5e-4, 3, 4, TWINS | MEAN),
    "l0_r3_e3_twins_mean": (0, 3e-4, 3, 4, TWINS | MEAN),
    "p20_l20_r10_e2_twins_mean": (20, 1e-3, 2, 4, TWINS | MEAN | ALL_PAIRS),
    "p20_l20_r10_e2_twins": (20, 1e-3, 2, 4, TWINS | ALL_PAIRS),
    "p20_l20_r10_e1_twins": (20, 1e-3, 1, 4, TWINS | ALL_PAIRS),
    "p20_l20_r7_e2_twins": (20, 7e-4, 2, 4, TWINS | ALL_PAIRS),
    "p20_l22_r10_e2_twins": (22, 1e-3, 2, 4, TWINS | ALL_PAIRS),
    "p20_l20_r15_e2_b8_twins": (20, 1.5e-3, 2, 8, TWINS | ALL_PAIRS),
    "p14_l20_r10_e2_twins": (20, 1e-3, 2, 4, TWINS | FOURTEEN),
    "p14_l20_r7_e3_twins": (20, 7e-4, 3, 4, TWINS | FOURTEEN),
    "p14_l22_r10_e2_twins": (22, 1e-3, 2, 4, TWINS | FOURTEEN),
    "l20_r10_e2_twins": (20, 1e-3, 2, 4, TWINS),
}


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    for seed in range(config.seed, config.seed + SEEDS):
        for name, (first, rate, epochs, batch, more) in SETTINGS.items():
            fields = {
                "lora.layers": first,
                "train.learning_rate": rate,
                "train.epochs": epochs,
                "train.batch_size": batch,
            }
            yield (
                name if seed == config.seed else f"{name}-seed{seed}",
                ASKED | FEWER | fields | more | {"seed": seed},
            )
