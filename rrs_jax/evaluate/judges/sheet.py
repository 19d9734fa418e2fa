"""Labels by people: a CSV sheet written from responses, filled in with yes or no, and read back as a judge.

python -m rrs_jax.evaluate.judges.sheet RUN/eval/rrs --out=labels.csv --number=200
python launch.py ... --stages=evaluate --config.evaluate.judges=phrases,human:labels.csv
"""

import argparse
import csv
import io
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.kinds import with_home
from rrs_jax.data.bad_rows import BadRow
from rrs_jax.data.csv_rows import csv_rows
from rrs_jax.errors import UserError, exit_status
from rrs_jax.evaluate.judges.judge import Judgement, is_empty, non_answer
from rrs_jax.files import content_hash, read_jsonl, reason_of, write_atomic
from rrs_jax.web.text import csv_cell, csv_text

COLUMNS = ("set", "mode", "id", "sample", "question", "response", "refusal", "harmful")
YES, NO = ("yes", "y", "1", "true"), ("no", "n", "0", "false")
# A spreadsheet takes a cell that begins with one of these for a formula, and would show another text.
TEXTS = ("set", "mode", "id", "question", "response")


def write_sheet(path: str | Path, responses: Sequence[dict], number: int | None = None, seed: int = 0) -> int:
    """Writes `number` responses (None: all) in random order and returns how many rows there are.

    Judges' labels are left out, so that people are not led. Equal answers to one question stand once. Raises
    UserError where the file exists: it may hold labels.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists and may hold labels; give another --out.")
    different = list({(row["question"], row["response"]): row for row in responses}.values())
    random.Random(seed).shuffle(different)
    rows = different[:number]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        shown = {name: csv_cell(value) for name, value in row.items() if isinstance(value, str)}
        writer.writerow(row | shown | {"refusal": "", "harmful": ""})
    write_atomic(path, "\ufeff" + text.getvalue())  # the mark has spreadsheets read UTF-8
    return len(rows)


def read_sheet(path: str | Path) -> list[dict]:
    """Reads the rows of a filled-in sheet; `refusal` and `harmful` are True, False or None (empty).

    Raises one UserError for all faults.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({reason_of(error)}); give the CSV sheet of labels, saved as UTF-8."
        ) from error
    delimiter = ";" if ";" in content.split("\n", 1)[0] else ","  # as spreadsheets of many countries save
    header, read, _ = csv_rows(path, content, delimiter)
    missing = [name for name in ("question", "response", "refusal", "harmful") if name not in header]
    if missing:
        raise UserError(
            f"{path}: has no column {', '.join(missing)}; write a sheet with python -m"
            " rrs_jax.evaluate.judges.sheet."
        )
    rows, faults = [], []
    for number, (line, row) in enumerate(read, start=2):
        if isinstance(row, BadRow):
            faults.append(f"line {line}: {row.reason}")
            continue
        for label in ("refusal", "harmful"):
            written = (row[label] or "").strip().lower()
            if written and written not in YES + NO:
                faults.append(f"row {number}: {label} is {written!r}")
            row[label] = None if not written else written in YES
        rows.append(row | {name: csv_text(row.get(name) or "") for name in TEXTS if name in row})
    if faults:
        raise UserError(f"{path}: {'; '.join(faults[:20])}; write yes, no or nothing.")
    return rows


class Human:
    """A filled-in sheet as a judge; responses that it lacks, or has without a label, are "unlabelled"."""

    def __init__(self, path: str | Path):
        rows = read_sheet(path)
        self.name, self.version = f"human:{Path(path).stem}", content_hash(rows)[:8]
        self.labels = {_key(row): (row["refusal"], row["harmful"]) for row in rows}
        seen = {"refusal": 0, "harmful": 1}
        self.sees = frozenset(
            name
            for name, place in seen.items()
            if any(label[place] is not None for label in self.labels.values())
        )
        if not self.sees:
            raise UserError(
                f"{path}: holds no label yet; write yes or no into the columns refusal and harmful."
            )

    def judge(self, question: str, response: str, label: str) -> Judgement:
        refusal, harmful = self.labels.get(_key({"question": question, "response": response}), (None, None))
        if refusal is None and harmful is None:
            return Judgement(None, None, "empty" if is_empty(response) else "unlabelled")
        kind = "refusal" if refusal else "answer" if harmful else non_answer(question, response) or "answer"
        return Judgement(refusal, harmful, kind)


def _key(row: dict) -> tuple[str, str]:
    """Returns question and response without what a spreadsheet may change, which is white space."""
    return tuple(" ".join(row[name].split()) for name in ("question", "response"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.evaluate.judges.sheet", description="A sheet for labels."
    )
    parser.add_argument("folder", help="RUN/eval/NAME, which holds responses.jsonl")
    parser.add_argument("--out", required=True, help="CSV file to write; it must not exist")
    parser.add_argument("--number", type=int, default=200, help="responses, drawn at random (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        rows = read_jsonl(Path(options.folder) / "responses.jsonl")
        written = write_sheet(options.out, rows, options.number, options.seed)
        print(f"{options.out}: {written} responses; write yes or no into the columns refusal and harmful")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
