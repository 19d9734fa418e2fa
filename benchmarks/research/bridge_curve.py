"""Why a bridge hears what it hears: figures along its training, and of shorter trainings without each idea.

    python benchmarks/research/bridge_curve.py --model=small --work=FOLDER --out=lines.jsonl

FOLDER has the data of all rows, made once; `python -m rrs_jax.mini.train_bridge` shares them, and speech is
made again from data.jsonl alone. A line is added to the file as its figures are there, and all are printed as
a table at the end. The same command goes on where it was stopped: lines that are there are not made again,
and a training goes on from its last bridge.
All flags of `train_bridge` are taken; --steps is the curve's length, of which the figures at 250, 500, 1,000,
1,750 and 3,500 steps are along one falling learning rate, and --row_steps that of every other row, which ends
at its lowest rate.

| row | reason |
|---|---|
| `read` | the ceiling: the decoder reads, which no bridge changes; no training |
| `curve` | the recipe, along its steps: would more of the same reach 85 %? |
| `as_it_is` | the recipe at the length of the rows below, which are measured against it |
| `copies_apart` | the same questions, but a question and its copy meet in a batch by chance alone |
| `every_question` | states of questions without an answer too: alarming ones, and those that were declined |
| `no_contrast` | each heard state is brought to its read one, but not told from the others |
| `end_alone` | states behind the final norm alone: do those of the layers below need a loss of their own? |
| `no_distance` | told from the others, but not brought to the read state |

`every_question` has what the bridge is kept from on purpose, since it may teach safety by the way; `refused`
shows whether it does.

A line has, in percent, of the starter set's 280 training pairs (a harmful question and its rewrite) and of as
many pairs of an everyday question and its copy, chosen by the hash of their number and never trained on, all
heard or read beside t:

- `words_wrong`: of harmless questions that are repeated, as in `rrs_jax.mini.measure`; `twins_words_wrong`:
  of the 560 twins.
- `probe`, `probe_clip`: twins told apart by a linear probe at the last token and over the clip, layer and
  ridge chosen inside, as in `rrs_jax.mini.separability`. `probe_right_words`: of pairs that are repeated
  without a fault. `probe_transcript`: when the decoder reads what it repeated, which has the words that were
  heard and none of the states.
- `twins`, `copies`, by layer at the last token: `told`, heard states nearer to their own read state than to
  their twin's, by the cosines of `state_losses`; `told_of_all`, than to all 560; `kept`, how much of the
  difference of two read twins the heard ones have, along it; `apart`, the squared difference of read twins,
  as a share of that of two random questions; all of standardised states. No probe is fitted, so that harmful
  and everyday pairs compare.
- `refused`: of the harmful questions and of their rewrites, 48 greedy tokens beside t, by phrases.
- `seconds` of training since `began_at_step`, which is 0 unless a stopped training went on.

Predictions, written down before any of these runs, for `small`:

1. `curve`: words wrong at least 8 % at 250 steps, 4 to 7 at 500, 2.5 to 4 at 1,000. The probe (heard 75, read
   91 at the shipped bridge) is at most 66 at 250 and gains less than 2 points from 1,000 to 1,750: more of
   the same does not reach 85.
2. `probe_transcript` is at least 86 at 1,750 steps and `probe_right_words` at most 2 above `probe`: the words
   are heard, and it is their meaning at the last token that is not.
3. At 1,750 steps copies are told at 97 or more behind layer 18 and twins at 85 to 95. `kept` is at least 0.15
   higher for copies, although they are no further apart by more than a half: it is the subject too, not
   hearing alone.
4. `no_contrast`: copies told lower by at most 3 points, `told_of_all` by at least 5, the probe by at most 2.
5. `copies_apart`: the probe lower by 1 to 3 points, copies told by at least 2.
6. `no_distance`: `kept` loses over a third; the probe moves by at most 2 points.
7. `end_alone`: `told` is lower by 5 or more behind layer 12, and within 2 behind the last; the probe lower by
   at most 2.
8. `every_question`: the probe is higher by 1 to 4 points and `kept` of twins by at least 0.05; harmful ones
   are refused at most 5 points more often.

Seen behind these predictions and before any run, of the shipped bridge (float32, CPU): unseen everyday
questions and their copies (100 pairs of the starter set's) are told at 82 % behind layer 18 and 91 behind the
last, with 0.62 and 0.75 kept; the 280 twins at 82 and 94, with 0.52 and 0.66. So 3 will hardly come true.

Commands for one H200, and the seconds expected of each: data in a new FOLDER + start and compilation + steps
at 0.31 s (mini 0.1) + figures, which hold training up for 25 s each; their probes are worked out on the host
meanwhile.

| command, behind `--work=FOLDER --out=lines.jsonl` | seconds |
|---|---:|
| `--model=small --rows=read,curve` | 150 + 70 + 545 + 100 |
| `--model=small --rows=as_it_is,copies_apart,every_question` | 150 + 110 + 560 + 75 |
| `--model=small --rows=no_contrast,end_alone,no_distance` | 150 + 110 + 560 + 75 |
| `--model=small --rows=curve --steps=3500`, a training of its own | 150 + 70 + 1,085 + 125 |
| `--model=mini --rows=read,curve` | 100 + 60 + 175 + 80 |

The mini's bridge itself, on all pairs, and its figures:

    python -m rrs_jax.mini.train_bridge --model=mini --work=FOLDER                                  # 330
    python -m rrs_jax.mini.measure --model=mini --bridge=FOLDER --dtype=bfloat16 --questions=300    # 45
    python -m rrs_jax.mini.separability --model=mini --bridge=FOLDER --dtype=bfloat16               # 60
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bridge_figures import Figures, table
from flax import nnx

from rrs_jax.config.kinds import integer, names, with_home
from rrs_jax.errors import UserError, exit_status
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl
from rrs_jax.mini.bridge_examples import Examples, two_by_two
from rrs_jax.mini.train_bridge import ARGUMENTS, Material, add_arguments, prepare, train
from rrs_jax.progress import say
from rrs_jax.run.compilation import enable_compilation_cache

CURVE_STEPS = (250, 500, 1000, 1750, 3500)
# A line with other values of these is of another training or of other questions.
SETTINGS = (
    "model", *(flag[2:] for flag, *_ in ARGUMENTS if flag not in ("--generate_batch", "--memory")),
    "held_out", "questions", "pairs_per_category",
)  # fmt: skip
Todo = tuple[argparse.Namespace, set[int]]  # a row's flags, and the steps behind which figures are missing


class Apart(Examples):
    """Examples of which no question is put beside its copy."""

    def answered(self) -> list[tuple[int, ...]]:
        return [(i,) for group in super().answered() for i in group]


class EveryQuestion(Examples):
    """Examples whose states are learnt of questions without an answer too."""

    def answered(self) -> list[tuple[int, ...]]:
        return two_by_two(self.rows, [i for i, row in enumerate(self.rows) if row["pair"] is not None])


@dataclass(frozen=True)
class Row:
    """A training: what it changes of `train_bridge`'s flags, and how its batches are made."""

    changes: dict[str, object] = field(default_factory=dict)
    examples: type[Examples] = Examples


ROWS = {
    "curve": Row(),
    "as_it_is": Row(),
    "copies_apart": Row(examples=Apart),
    "every_question": Row(examples=EveryQuestion),
    "no_contrast": Row({"contrast": 0.0}),
    "end_alone": Row({"every": 0}),
    "no_distance": Row({"distance": 0.0}),
}


def hold_out(rows: Sequence[dict], count: int) -> tuple[list[int], list[tuple[str, str]]]:
    """Returns the places of the rows to train on, and the texts of `count` pairs that are kept from them."""
    texts: dict[int, list[str]] = {}
    for row in rows:
        if row["pair"] is not None:
            texts.setdefault(row["pair"], []).append(row["text"])
    whole = [pair for pair, both in texts.items() if len(both) == 2]
    if count >= len(whole):
        raise UserError(f"--held_out: {len(whole)} questions have a copy, hold out fewer than these.")
    chosen = sorted(whole, key=lambda pair: content_hash("held out", pair))[:count]
    held = set(chosen)
    return [i for i, row in enumerate(rows) if row["pair"] not in held], [tuple(texts[p]) for p in chosen]


def options_of(name: str, asked: argparse.Namespace, changes: dict[str, object]) -> argparse.Namespace:
    """Returns the flags with which a row is trained; its bridge has a folder of its own."""
    steps = {"read": 0, "curve": asked.steps}.get(name, asked.row_steps)
    options = argparse.Namespace(**vars(asked) | changes | {"steps": steps})
    folder = f"{name}-{steps}-{content_hash(*key_of(name, options).values())}"
    options.work = str(Path(asked.work) / "rows" / folder)
    return options


def key_of(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Returns what a line must have to be of this row."""
    return {"row": name, **{setting: getattr(options, setting) for setting in SETTINGS}}


def missing_steps(name: str, options: argparse.Namespace, lines: Sequence[dict]) -> set[int]:
    """Returns the steps of a row behind which figures are wanted and not there."""
    wanted = {options.steps}
    if name == "curve":
        wanted |= {step for step in CURVE_STEPS if step < options.steps}
    key = key_of(name, options)
    return wanted - {line["step"] for line in lines if key.items() <= line.items()}


def train_row(name: str, material: Material, figures: Figures, later: Callable, todo: Todo) -> None:
    """Trains a row's bridge; `later` takes the work on the host that makes a line."""
    options, steps = todo
    Path(options.work).mkdir(parents=True, exist_ok=True)
    examples = ROWS[name].examples(material.processor, material.rows, material.clips, options.batch_size)
    first, paused, start = None, 0.0, time.monotonic()

    def on_step(step: int, trainable: nnx.State) -> None:
        nonlocal first, paused
        first = step if first is None else first
        if step in steps:
            seconds, before = time.monotonic() - start - paused, time.monotonic()
            line = {"step": step, "began_at_step": first, "seconds": round(seconds, 1)}
            found = figures.hear(trainable)
            later(lambda: line | figures.of_hearing(**found))
            paused += time.monotonic() - before

    train(material.bridge, examples, material.table, options, on_step)
    if passed := {step for step in steps if step < first}:
        say(f"{name}: trained beyond {sorted(passed)} before; remove {options.work} to train it again")


class HostWork:
    """Work on the host, in the order given, while the device goes on: a line's probes take a minute.

    What has failed is raised at the next piece, or at the end.
    """

    def __init__(self):
        self.pool, self.pieces = ThreadPoolExecutor(1), []

    def submit(self, function: Callable, *arguments: object) -> None:
        for piece in self.pieces:
            if piece.done():
                piece.result()
        self.pieces.append(self.pool.submit(function, *arguments))

    def __enter__(self) -> "HostWork":
        return self

    def __exit__(self, failed: type | None, *_: object) -> None:
        self.pool.shutdown(cancel_futures=failed is not None)
        for piece in self.pieces if failed is None else ():
            piece.result()


def add_line(file: Path, key: dict[str, object], work: Callable[[], dict[str, object]]) -> None:
    """Adds a row's line, of which `work` returns all but the key."""
    line = key | work()
    append_jsonl(file, [line])
    say(f"{line['row']}, step {line['step']}: probe {line['probe']['right']} %")


def run(asked: argparse.Namespace) -> None:
    """Makes the lines of the rows that are not there, and prints the table of all."""
    out = Path(asked.out)
    make_missing(asked, out)
    print(table(read_growing_jsonl(out, say)))


def make_missing(asked: argparse.Namespace, out: Path) -> None:
    """Makes the lines of the rows that are not there."""
    lines, todo = read_growing_jsonl(out, say), {}
    for name in asked.rows:
        options = options_of(name, asked, ROWS[name].changes if name in ROWS else {})
        steps = missing_steps(name, options, lines)
        if steps:
            todo[name] = options, steps
        else:
            say(f"{name}: is there")
    if not todo:
        return
    enable_compilation_cache()
    material = prepare(asked)
    kept, held = hold_out(material.rows, asked.held_out)
    rows, clips = ([array[i] for i in kept] for array in (material.rows, material.clips))
    material = material._replace(rows=rows, clips=clips)
    figures, lost = Figures(material, held, asked), []
    with HostWork() as host:
        for name, (options, steps) in todo.items():
            later = functools.partial(host.submit, add_line, out, key_of(name, options))
            if name == "read":
                later(functools.partial(figures.of_reading, figures.answers_read()))
                continue
            try:
                train_row(name, material, figures, later, (options, steps))
            except FloatingPointError as error:  # a row without one of the losses may; the others go on
                say(f"{name}: {error}")
                lost.append(name)
    if lost:
        raise UserError(f"{', '.join(lost)}: not trained, the loss was not finite; lower --rate.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    rows = names(f"one or more of {', '.join(['read', *ROWS])}", "read", *ROWS)
    parser.add_argument("--rows", type=rows.argument, default=("read", *ROWS), help=rows.wants)
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines of the figures")
    whole = integer(1).argument
    parser.add_argument("--row_steps", type=whole, default=600, help="steps of the rows but the curve")
    parser.add_argument("--held_out", type=whole, default=280, help="pairs kept from training")
    parser.add_argument("--questions", type=whole, default=300, help="harmless questions to repeat")
    parser.add_argument("--pairs_per_category", type=whole, help="of the starter set's pairs, 20 by default")
    parser.add_argument(
        "--rows_at_once", type=whole, default=64, help="prompts on the device while measuring"
    )
    asked = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        run(asked)
    return status.code


if __name__ == "__main__":
    sys.exit(main())
