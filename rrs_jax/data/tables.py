"""Rows of the files that data sets come in: JSON lines (also .gz, .xz), JSON, CSV, Parquet, lines of text."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from rrs_jax.errors import UserError

OPENERS = {".gz": gzip.open, ".xz": lzma.open}
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")


def read_table(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yields line (or row) number and row; a line of text is {"text": ...}. Empty lines are passed over.

    Raises UserError that names the file, and the line where it is one line's fault.
    """
    path = Path(path)
    suffixes = [suffix for suffix in path.suffixes if suffix in OPENERS or suffix in KINDS]
    packed = suffixes[-1] if suffixes and suffixes[-1] in OPENERS else None
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if not kind:
        raise UserError(
            f"{path}: is none of {', '.join(KINDS)} (or one of them packed as .gz or .xz); rename or"
            " convert it."
        )
    if kind[0] == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with OPENERS.get(packed, open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from _text_rows(path, file, kind[0])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from error
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is damaged or cut short ({error}); fetch it again.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _text_rows(path: Path, file: io.TextIOBase, kind: str) -> Iterator[tuple[int, dict]]:
    if kind == ".json":
        rows = _parse(path, 1, file.read())
        rows = rows if isinstance(rows, list) else [rows]
        for number, row in enumerate(rows, start=1):
            yield number, row if isinstance(row, dict) else {"text": str(row)}
    elif kind in (".csv", ".tsv"):
        reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if isinstance(name, str)}
    else:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = {"text": line.strip()} if kind == ".txt" else _parse(path, number, line)
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}, line {number}: holds no JSON object; every line must be one object."
                )
            yield number, row


def _parse(path: Path, number: int, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: is not valid JSON ({error.msg}); mend or delete it."
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs the package pyarrow; run: pip install pyarrow"
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path}: is not readable as Parquet ({str(error).splitlines()[0]}); fetch it again."
        ) from error


QUESTION_COLUMNS = ("question", "prompt", "goal", "instruction", "text", "query", "behavior")


def read_questions(path: str | Path) -> list[str]:
    """Reads the questions of an evaluation set, whatever its file's shape.

    They stand in the columns that benchmarks use: FigStep's SafeBench has `question` and `instruction`,
    XSTest `prompt`, JailbreakBench `Goal`, a manifest `question`. Raises UserError where no row has such a
    column.
    """
    found, rows = [], 0
    for _, row in read_table(path):
        rows += 1
        found += [
            value.strip()
            for name, value in row.items()
            if name.lower().strip() in QUESTION_COLUMNS and isinstance(value, str) and value.strip()
        ]
    if not found:
        raise UserError(
            f"{path}: none of its {rows} rows has a question in a column {', '.join(QUESTION_COLUMNS)};"
            " rename the column."
        )
    return found
