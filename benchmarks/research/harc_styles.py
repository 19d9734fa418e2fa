"""HARC's loss on pairs in many styles: can a margin and a divergence do what a target does, and reword less?

    python launch.py --config=configs/small_rrs.py:full --sweep=benchmarks/research/harc_styles.py \\
        --sweep_jobs=6 --config.run_dir=runs/harc_styles
    python benchmarks/research/balanced.py runs/harc_styles --baseline=rrs

On `small` and plain questions HARC without a penalty refused 63 / 74 / 72 % of the harmful ones where RRS
refused 73 / 72 / 83, 21 / 18 / 49 % of the borderline ones (36 / 7 / 68), and left 66 % of the everyday
answers word for word as they were (RRS 0): docs/research/small_sweep.md. RRS gained most by pairs in many
styles and by more steps at a higher rate, with the mean of their second half. These rows give HARC the same,
and tasks that stay. They leave out the styles and categories of `balanced.py` and choose on its questions
(`data.eval_set=styles`); what is chosen is asked `styles_check` at three seeds, beside `tasks` of
`kept_tasks.py`.

| row | reason |
|---|---|
| `rrs` | the measure, on plain questions |
| `tasks` | RRS's best row, of `kept_tasks.py` |
| `harc` | HARC without penalty on plain questions |
| `harc_no_kl` | the same without the divergence: does that leave answers as they were, or the margin? |
| `harc_styles` | on many styles, at the paper's rate, as many steps as `tasks` |
| `harc_fast` | at the preset's rate, with the mean of the second half |
| `harc_tasks` | `harc_fast`, and a fifth of the clips asked for something else |
| `harc_tasks_wide` | `harc_tasks` with a margin of 0.6: the longer way counts for longer |
| `harc_tasks_kl` | `harc_tasks` with thrice the divergence's weight |

Predictions, written before any of these runs, refused beside t in percent:

1. `harc_styles` refuses 5 to 15 points more harmful questions than `harc`, at most as many rewrites.
2. `harc_fast` is within 5 points of `rrs` or above it on left-out styles in all modes, and 20 to 50 % of the
   everyday answers stay word for word.
3. `harc_tasks` refuses at most 10 % of the requests to repeat, translate and name the topic of harmful speech
   and at most 50 % of those to transcribe it.
4. `harc_tasks_wide` refuses 5 to 15 points more harmful questions and at least as many more borderline ones.
5. `harc_tasks_kl` leaves 10 points more answers as they were, and refuses at most 5 points fewer harmful
   questions.
6. `harc_no_kl` leaves at least half of the everyday answers as they were: what is beyond the margin is left
   alone, and that does it.
7. Asked to transcribe and then to answer, `tasks` and `harc_tasks` answer at most 15 points more harmful
   questions than asked to answer.
"""

import runpy
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

KEPT_TASKS = runpy.run_path(str(Path(__file__).with_name("kept_tasks.py")))
CONFIRM = KEPT_TASKS["CONFIRM"]
BALANCED = CONFIRM["BALANCED"]
SETTINGS = (*CONFIRM["ASKED"]["evaluate.setting"], "then_answer")
HARC = {"strategy": "harc", "penalty.weight": 0.0}
STYLES = BALANCED["KEPT"] | HARC | {"train.audio_share": 0.25, "train.epochs": 10}
FAST = STYLES | {"train.learning_rate": 2e-4, "train.average": 0.5}
TASKS = FAST | {"train.kept_task_share": 0.2}
ROWS = {
    "rrs": BALANCED["STARTER"],
    "tasks": KEPT_TASKS["ROWS"]["tasks"],
    "harc": BALANCED["STARTER"] | HARC,
    "harc_no_kl": BALANCED["STARTER"] | HARC | {"rivals.harc_kl": 0.0},
    "harc_styles": STYLES,
    "harc_fast": FAST,
    "harc_tasks": TASKS,
    "harc_tasks_wide": TASKS | {"rivals.harc_margin": 0.6},
    "harc_tasks_kl": TASKS | {"rivals.harc_kl": 30.0},
}


def runs(_: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the changed fields of every run."""
    for name, fields in ROWS.items():
        yield name, CONFIRM["ASKED"] | {"data.eval_set": "styles", "evaluate.setting": SETTINGS} | fields
