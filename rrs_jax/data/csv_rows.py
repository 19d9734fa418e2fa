"""Rows of CSV text, none of which a stray quotation mark can swallow unsaid."""

import csv
import itertools
from collections.abc import Iterator, Sequence

from rrs_jax.data.bad_rows import BadRow
from rrs_jax.errors import UserError

SEMICOLON_OR_TAB = (";", "\t")  # as spreadsheets of many countries save


def csv_rows(
    path, text: str, delimiter: str | None = None
) -> tuple[list[str], list[tuple[int, dict[str, str] | BadRow]], list[str]]:
    """Reads CSV text: the header, (line, row) of each row, and remarks about what looks like a mistake.

    delimiter: None takes a comma, or what the header has in place of commas. A row that the dialect cannot
    read alone, and a quotation mark that nothing closes, are bad rows of their line. Raises UserError for a
    header with the same name twice.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = text.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    if delimiter is None:
        delimiter = _delimiter(lines[0] if lines else "")
    header: list[str] = []  # filled by the first record
    rows, remarks = [], []
    for first, last, fields in _records(lines, delimiter, header):
        if isinstance(fields, list) and not any(field.strip() for field in fields):
            continue
        if not header:
            header += _header(path, first, fields)
            continue
        if isinstance(fields, list) and len(fields) > len(header):
            surplus = any(field.strip() for field in fields[len(header) :])
            if surplus:
                fields = BadRow(
                    f"has {len(fields)} fields where the header has {len(header)}; quote the text"
                )
        if isinstance(fields, BadRow):
            rows.append((first, fields))
            continue
        if last > first and _looks_like_rows(lines[first - 1 : last], delimiter, len(header)):
            remarks.append(
                f"lines {first} to {last} are one row, by the quotation mark in line {first}, though each"
                " looks like a row of its own; check the quotation marks"
            )
        rows.append((first, dict(itertools.zip_longest(header, fields[: len(header)], fillvalue=""))))
    return header, rows, remarks


def _header(path, line: int, fields: list[str] | BadRow) -> list[str]:
    """Returns the names of the columns. Raises UserError for a record that is none."""
    if isinstance(fields, BadRow):
        raise UserError(f"{path}, line {line}: {fields.reason}.")
    named = [name for name in fields if name.strip()]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise UserError(f"{path}: has the column {', '.join(twice)} twice; rename or delete one.")
    return fields


def _delimiter(header: str) -> str:
    for other in SEMICOLON_OR_TAB:
        if other in header and header.count(other) > header.count(","):
            return other
    return ","


def _records(
    lines: Sequence[str], delimiter: str, header: Sequence[str]
) -> Iterator[tuple[int, int, list[str] | BadRow]]:
    """Yields first line, last line and fields of each record; goes on in the next line behind a bad one."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        start = 0
        while start < len(lines):
            following = map(lines.__getitem__, range(start, len(lines)))
            reader = csv.reader(following, delimiter=delimiter, strict=True)
            done = 0
            try:
                for fields in reader:
                    if done + 1 < reader.line_num and header and len(fields) > len(header):
                        raise csv.Error("it runs on in the next lines")
                    yield start + done + 1, start + reader.line_num, fields
                    done = reader.line_num
                return
            except csv.Error as error:
                first = start + done
                yield first + 1, first + 1, _alone(lines[first], delimiter, header, error)
                start = first + 1
    finally:
        csv.field_size_limit(limit)


def _alone(line: str, delimiter: str, header: Sequence[str], error: csv.Error) -> list[str] | BadRow:
    """Fields of a line that strict reading refuses, where they are as many as the header's."""
    try:
        fields = next(csv.reader([line], delimiter=delimiter))
    except csv.Error as unreadable:
        return BadRow(f"cannot be read ({unreadable}); mend or delete it")
    # A field such as `"Hello" she said` has its marks closed; one that is not closed runs to the line's end.
    if len(fields) == len(header) and not fields[-1].endswith("\n"):
        return fields
    if "unexpected end" in str(error):
        return BadRow("has a quotation mark that nothing closes; delete it, or write it twice within quotes")
    return BadRow(f"has a stray quotation mark ({error}); delete it, or write it twice within quotes")


def _looks_like_rows(lines: Sequence[str], delimiter: str, columns: int) -> bool:
    """True where each of these lines would be a row if the first one had no quotation mark."""
    alone = [lines[0].replace('"', "", 1), *lines[1:]]
    try:
        return columns > 1 and all(
            len(next(csv.reader([line], delimiter=delimiter), [])) == columns for line in alone
        )
    except csv.Error:
        return False
