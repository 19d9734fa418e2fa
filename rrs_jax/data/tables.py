"""Rows of the files that data sets come in: JSON lines (also .gz, .xz), JSON, CSV, Parquet, lines of text."""

import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from rrs_jax.data.bad_rows import BadRow, BadRows
from rrs_jax.data.csv_rows import csv_rows
from rrs_jax.data.messages import conversation_of
from rrs_jax.data.values import text_of
from rrs_jax.errors import UserError
from rrs_jax.files import DAMAGE, JSONFault, half_character_fault, parse_json, reason_of
from rrs_jax.progress import say

OPENERS = {".gz": gzip.open, ".xz": lzma.open}
MOST_UNPACKED = (
    300  # times the packed bytes: text packs to a tenth, a file that is made to fill memory to less
)
ALWAYS_UNPACKED = 2**26  # bytes
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
Place = str  # "line 3" of a text file, "row 3" of others


def read_table(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yields line (or row) number and row; a line of text is {"text": ...}. Empty lines are passed over.

    Raises UserError that names the file, and the line where it is one line's fault.
    """
    for place, row in read_rows(path):
        if isinstance(row, BadRow):
            raise UserError(f"{path}, {place}: {row.reason}.")
        if row is not None:
            yield int(place.split()[1]), row


def read_rows(
    path: str | Path, kind: str | None = None, columns: Sequence[str] = ()
) -> Iterator[tuple[Place, dict | BadRow | None]]:
    """Yields place and row of every row: None for an empty line, a BadRow for one that cannot be read.

    kind: one of `KINDS` for a file whose name does not say it; Parquet is known by its name always. columns:
    names that a table must have. Raises UserError where the file is missing, of no known kind, damaged or no
    text, and where a table lacks a column.
    """
    path = Path(path).expanduser()
    suffixes = [
        suffix.lower() for suffix in path.suffixes if suffix.lower() in OPENERS or suffix.lower() in KINDS
    ]
    packed = suffixes[-1] if suffixes and suffixes[-1] in OPENERS else None
    named = next(iter((suffixes[:-1] if packed else suffixes)[-1:]), None)
    if named == ".parquet" or kind is None:
        kind = named
    if kind is None:
        raise UserError(
            f"{path}: is none of {', '.join(KINDS)} (or one of them packed as .gz or .xz); rename or"
            " convert it."
        )
    if kind == ".parquet":
        rows = _parquet_rows(path)
    else:
        rows = _opened_rows(path, packed, kind, columns)
    for number, (place, row) in enumerate(rows):
        if not number and kind == ".parquet":
            _check_columns(path, row, columns)
        fault = half_character_fault(row) if isinstance(row, dict) else None
        yield place, BadRow(fault) if fault else row


def table_kind(path: Path, otherwise: str) -> str:
    """Returns the kind of a file that a format has in other containers too, by its name."""
    named = [
        suffix.lower() for suffix in path.suffixes if suffix.lower() in KINDS and suffix.lower() != ".txt"
    ]
    return named[-1] if named else otherwise


def _check_columns(path: Path, names: Iterable[str], columns: Sequence[str]) -> None:
    names = list(names)
    if missing := [name for name in columns if name not in names]:
        has = ", ".join(names) or "none"
        raise UserError(f"{path}: has no column {', '.join(missing)}; it has {has}.")


def _opened_rows(
    path: Path, packed: str | None, kind: str, columns: Sequence[str]
) -> Iterator[tuple[Place, dict | BadRow | None]]:
    try:
        with io.TextIOWrapper(_opened(path, packed), encoding="utf-8-sig", newline="") as file:
            yield from _text_rows(path, file, kind, columns)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from error


def _opened(path: Path, packed: str | None) -> BinaryIO:
    """The unpacked file. Raises UserError where it cannot be read, or unpacks to more than a text does."""
    try:
        if packed is None:
            return path.open("rb")
        most = max(ALWAYS_UNPACKED, MOST_UNPACKED * path.stat().st_size)
        with OPENERS[packed](path) as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # a name with what no name can hold is a ValueError
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise UserError(f"{path}: cannot be read ({reason_of(error)}).") from error
        raise UserError(f"{path}: is damaged or cut short ({error}); fetch it again.") from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: is damaged or cut short ({error}); fetch it again.") from error
    if len(content) > most:
        raise UserError(f"{path}: unpacks to more than {MOST_UNPACKED} times its size; unpack it yourself.")
    return io.BytesIO(content)


def _text_rows(
    path: Path, file: io.TextIOBase, kind: str, columns: Sequence[str]
) -> Iterator[tuple[Place, dict | BadRow | None]]:
    if kind in (".csv", ".tsv"):
        header, rows, remarks = csv_rows(path, file.read(), "\t" if kind == ".tsv" else None)
        _check_columns(path, header, columns)
        for remark in remarks:
            say(f"{path}: {remark}")
        yield from ((f"line {number}", row) for number, row in rows)
        return
    if kind == ".json" or (kind == ".jsonl" and _is_list(file)):
        yield from _json_rows(path, file.read())
        return
    for number, line in enumerate(file, start=1):
        if not line.strip():
            yield f"line {number}", None
        elif kind == ".txt":
            yield f"line {number}", {"text": line.strip()}
        else:
            yield f"line {number}", _json_line(line)


def _is_list(file: io.TextIOBase) -> bool:
    """True where the text begins as a list of objects does, which some programs call JSON lines."""
    beginning = file.read(4096)
    file.seek(0)
    return re.match(r"\ufeff?\s*\[\s*(\{|$)", beginning) is not None


def _json_rows(path: Path, text: str) -> Iterator[tuple[Place, dict]]:
    try:
        rows = parse_json(text, halves=True)
    except JSONFault as error:
        raise UserError(
            f"{path}, line {error.line or 1}: is not valid JSON ({error}); mend or delete it."
        ) from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        yield f"row {number}", row if isinstance(row, dict) else {"text": row}


def _json_line(line: str) -> dict | BadRow:
    try:
        row = parse_json(line, halves=True)
    except JSONFault as error:
        return BadRow(f"is not valid JSON ({error}); mend or delete it")
    return row if isinstance(row, dict) else BadRow("holds no JSON object; every line must be one object")


def _parquet_rows(path: Path) -> Iterator[tuple[Place, dict]]:
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
                    yield f"row {number}", row
    except (*DAMAGE, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path}: is not readable as Parquet ({reason_of(error)}); fetch it again."
        ) from error


# The last word of a column that holds questions: `forbidden_prompt`, `Goal`, `redteam_query`.
QUESTION_WORDS = ("question", "prompt", "goal", "instruction", "text", "query", "behavior", "behaviour")
QUESTION_WORDS += tuple(f"{word}s" for word in QUESTION_WORDS) + (
    "queries",
    "turns",
    "transcript",
    "sentence",
)


def is_question_column(name: str) -> bool:
    """Returns True for the name of a column that holds questions, whatever benchmark it comes from."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return bool(words) and words[-1] in QUESTION_WORDS


def read_questions(path: str | Path, skip_bad: bool = False) -> list[str]:
    """Reads the questions of an evaluation set, whatever its file's shape.

    They stand in the columns that benchmarks use: FigStep's SafeBench has `question` and `instruction`,
    XSTest `prompt`, StrongREJECT `forbidden_prompt`, JailbreakBench `Goal`, a manifest `question`; or are a
    conversation's user turns. Rows without one are counted and told. Raises UserError that lists the rows
    that cannot be read, or tells them (`skip_bad`), and where no row has such a column.
    """
    found, rows, mute, bad = [], 0, [], BadRows(path, skip_bad)
    for place, row in read_rows(path):
        if row is None:
            continue
        rows += 1
        if isinstance(row, BadRow):
            bad.add(place, row.reason)
            continue
        try:
            questions = _questions_of(row)
        except ValueError as reason:
            bad.add(place, str(reason))
            continue
        found += questions
        if not questions:
            mute.append(place)
    bad.end(rows)
    if not found:
        raise UserError(
            f"{path}: none of its {rows} rows has a question in a column {', '.join(QUESTION_WORDS[:8])};"
            " rename the column."
        )
    if mute:
        say(f"{path}: {len(mute)} of {rows} rows have no question ({', '.join(mute[:5])})")
    return found


def _questions_of(row: dict) -> list[str]:
    columns = [value for name, value in row.items() if is_question_column(name)]
    if (conversation := conversation_of(row)) is not None:
        columns += conversation.questions
    entries = [entry for value in columns for entry in (value if isinstance(value, list) else [value])]
    questions = []
    for entry in entries:
        try:
            text = text_of(entry)
        except ValueError:
            continue
        questions += [text.strip()] if text else []
    return questions
