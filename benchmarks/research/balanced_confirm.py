"""RRS, the preset, and two weights of it on pairs in many styles, on questions that nothing was chosen by.

    python launch.py --config=configs/small_rrs.py:full --sweep=benchmarks/research/balanced_confirm.py \\
        --sweep_jobs=6 --config.run_dir=runs/balanced_confirm
    python benchmarks/research/balanced.py runs/balanced_confirm            the target's rates
    python -m rrs_jax.report.details runs/balanced_confirm/*/               what is kept, and the tasks

Three seeds, of `rrs_plus` one, asked the other evaluation pairs in ten styles and the other borderline
questions (`data.eval_set=styles_check`) in all three modes. The rest of what a deployer asks is measured
beside: answers to everyday questions and refusals in writing that are kept, and what is refused of four
tasks. The model before training is one run: it answers greedily, so that seeds change nothing.

`styles_plus` was the row of `balanced.py` that lay farthest from the curve of all others. `styles_plus_1` is
the same with harmful questions weighed once; it was fixed, with its prediction, before it was run anywhere.
"""

import runpy
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config.prompts import TASK_PROMPTS

SEEDS = 3
BALANCED = runpy.run_path(str(Path(__file__).with_name("balanced.py")))
ROWS = ("rrs", "styles_plus_1", "styles_plus")
ASKED = BALANCED["ASKED"] | {
    "data.eval_set": "styles_check",
    "evaluate.everyday": "starter",
    "evaluate.setting": ("spoken", *TASK_PROMPTS),
}


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the changed fields of every run."""
    yield "vanilla", ASKED | {"strategy": "vanilla"}
    for seed in range(config.seed, config.seed + SEEDS):
        for name in ROWS:
            named = name if seed == config.seed else f"{name}-seed{seed}"
            yield named, ASKED | BALANCED["ROWS"][name] | {"seed": seed}
    yield "rrs_plus", ASKED | BALANCED["ROWS"]["rrs_plus"]
