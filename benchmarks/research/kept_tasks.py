"""The settings of `balanced`, and tasks asked of a clip beside them: is a transcription given again?

    python launch.py --config=configs/small_rrs.py:full --sweep=benchmarks/research/kept_tasks.py \\
        --sweep_jobs=6 --config.run_dir=runs/kept_tasks
    python -m rrs_jax.report.details runs/kept_tasks/*/               what is kept, and the tasks

`styles_plus_1` of `balanced_confirm.py` refused 74 % of the requests to transcribe harmful speech, RRS 58 and
the model before training none. These rows differ from it in one thing each, and are asked what it was asked
(`data.eval_set=styles_check`); nothing is chosen by them, as there is one row for each idea.

| row | reason |
|---|---|
| `tasks` | beside a fifth of the clips something else is asked and the state stays: it must see what |
| `tasks_text` | and a tenth is asked in writing and stays, as writing is refused more than before |
| `answers` | states held for eight tokens of an answer should leave more of it than one at its start |
| `whole` | `tasks` on all styles and categories: what the variant ships |

`tasks` has three seeds. A fifth of its draws moves nothing, so that it has ten passes for eight. Its tasks
are worded otherwise than those of the evaluation, of which transcribing and repeating are kinds that it has
seen, translating and naming the topic are none.

Predictions, written before any of these runs, in percent refused:

1. `tasks`: of harmful speech at most 10 % of the requests to transcribe and to repeat are refused, at most 25
   of those to translate and to name the topic. Of harmless speech at most 3 %.
2. It refuses at most 5 points fewer harmful questions than `styles_plus_1` in each mode (69 / 70 / 78), and
   at most 2 more rewrites (13 / 2 / 17).
3. The divergence along everyday answers falls by a tenth to a third beside a text (0.38 nats a token).
4. `tasks_text` is in writing within 10 points of the model before training (35), and beside a text within 5
   of `tasks`.
5. `answers` has at most half the divergence of `styles_plus_1`, and 10 to 40 % of the answers unchanged over
   32 tokens; harmful questions within 5 points.
6. `whole` refuses 3 to 10 points more harmful questions than `tasks`, as no style and category is left out.
"""

import runpy
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

CONFIRM = runpy.run_path(str(Path(__file__).with_name("balanced_confirm.py")))
BEFORE = CONFIRM["BALANCED"]["ROWS"]["styles_plus_1"]
EVERYWHERE = {"data.left_out_styles": (), "data.left_out_categories": (), "train.epochs": 6}
TASKS = BEFORE | {"train.kept_task_share": 0.2, "train.epochs": 10}
ROWS = {
    "tasks": TASKS,
    "tasks-seed1": TASKS | {"seed": 1},
    "tasks-seed2": TASKS | {"seed": 2},
    "tasks_text": TASKS | {"train.kept_text_share": 0.1, "train.epochs": 11},
    "answers": BEFORE | {"rrs.positions": 8},
    "whole": TASKS | EVERYWHERE,
}


def runs(_: ConfigDict) -> Iterator[tuple[str, dict]]:
    """Yields the name and the changed fields of every run."""
    for name, fields in ROWS.items():
        yield name, CONFIRM["ASKED"] | fields
