"""The row that `balanced.py` chose, beside RRS and the preset, on questions that nothing was chosen by.

    python launch.py --config=configs/small_rrs.py:full --sweep=benchmarks/research/balanced_confirm.py \\
        --sweep_jobs=4 --config.run_dir=runs/balanced_confirm
    python benchmarks/research/balanced.py runs/balanced_confirm

Three seeds each, asked the other evaluation pairs in ten styles and the other borderline questions
(`data.eval_set=styles_check`) in all three modes. The model before training is one run: it answers greedily,
so that seeds change nothing. `CHOSEN` is the first row of the ranking of `balanced.py`.
"""

import runpy
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

SEEDS = 3
CHOSEN = "styles_plus"  # until the ranking is there, the row that the predictions put first
BALANCED = runpy.run_path(str(Path(__file__).with_name("balanced.py")))
ROWS = ("rrs", "styles", "rrs_plus", CHOSEN)


def runs(config: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the changed fields of every run."""
    asked = BALANCED["ASKED"] | {"data.eval_set": "styles_check"}
    yield "vanilla", asked | {"strategy": "vanilla"}
    for seed in range(config.seed, config.seed + SEEDS):
        for name in dict.fromkeys(ROWS):
            named = name if seed == config.seed else f"{name}-seed{seed}"
            yield named, asked | BALANCED["ROWS"][name] | {"seed": seed}
