"""Files of JSON and JSON lines, those of the program itself with sums by which damage is found."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rrs_jax.distributed import processes
from rrs_jax.errors.kinds import Damaged, UserError
from rrs_jax.files.damaged import read_text
from rrs_jax.files.digests import content_hash
from rrs_jax.files.json_text import JSONFault, parse_json
from rrs_jax.files.writing import write_atomic

SUM = "content_sum"  # field of a run's own files and rows: the hash of their other fields


def write_json(path: str | Path, value: object) -> None:
    """Writes a value as indented JSON, never half of it."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def with_sum(value: dict) -> dict:
    """Returns the object, as JSON gives it back, with the hash of its content, which `read_json` and
    `read_jsonl` check and leave out."""
    value = json.loads(json.dumps(value))
    return value | {SUM: content_hash(value)}


def _without_sum(value: dict) -> dict:
    """Returns an object without its sum. Raises ValueError where the sum is that of another content."""
    if SUM not in value:
        return value
    content = {name: part for name, part in value.items() if name != SUM}
    if content_hash(content) != value[SUM]:
        raise ValueError(f"its content is not what was written, by its {SUM}")
    return content


def read_json(path: str | Path) -> dict:
    """Returns the JSON object in a file, without its sum.

    Raises UserError where the file is missing or holds none, and Damaged where its sum is another's.
    """
    try:
        value = parse_json(read_text(path))
    except JSONFault as error:
        where = f", line {error.line}" if error.line else ""
        raise UserError(f"{path}{where}: is not valid JSON ({error}); fetch or write it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; fetch or write it again.")
    try:
        return _without_sum(value)
    except ValueError as error:
        raise Damaged(f"{path}: is damaged, {error}; delete it and make it again.") from error


def read_jsonl(path: str | Path, *, halves: bool = False) -> list[dict]:
    """Returns the objects of a JSON lines file, without their sums; `halves` as in `parse_json`.

    Raises UserError that names a wrong line by its number, Damaged where its sum is another's.
    """
    rows = []
    for _, row in _numbered_rows(Path(path), read_text(path), halves):
        if isinstance(row, UserError):
            raise row
        rows.append(row)
    return rows


def _numbered_rows(path: Path, text: str, halves: bool = False) -> Iterator[tuple[int, dict | UserError]]:
    """Yields each line's number with its object, or with what is wrong with it.

    Behind a row with a sum all rows have one: without it, a damaged name of that field would pass.
    """
    summed = False
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: texts may hold U+2028
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line, halves=halves)
        except JSONFault as error:
            yield number, UserError(f"{where}: is not valid JSON ({error}); mend or delete it.")
            continue
        if not isinstance(row, dict):
            yield number, UserError(f"{where}: holds no JSON object; every line must be one object.")
            continue
        try:
            line.encode()  # fails where a damaged byte was no UTF-8
            if summed and SUM not in row:
                raise ValueError(f"it has no {SUM}")
            summed = SUM in row
            yield number, _without_sum(row)
        except ValueError as error:
            yield number, Damaged(f"{where}: is damaged, {error}; delete the line.")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object a line, never half of the file."""
    write_atomic(path, _lines(rows))


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def append_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Adds whole lines, each with its sum, and flushes them to disk, so that finished work survives a
    kill."""
    path = Path(path)
    if not processes.is_first():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_lines(map(with_sum, rows)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: writing failed ({error.strerror}); free space or check its rights."
        ) from error


def read_growing_jsonl(path: str | Path, tell: Callable[[str], None], *, mend: bool = True) -> list[dict]:
    """Returns the rows of a file that `append_jsonl` writes; none where there is no file.

    A last line that a kill has cut off is left out, and so is a damaged line, of which a sentence goes to
    `tell`: what it held is made again. With `mend` both are removed from the file, which nobody else may be
    writing.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        found = list(_numbered_rows(path, whole.decode("utf-8", "surrogateescape")))
        rows = [row for _, row in found if not isinstance(row, UserError)]
        if len(rows) < len(found):
            bad = [str(number) for number, row in found if isinstance(row, UserError)]
            tell(f"{path}: {len(bad)} of {len(found)} lines are damaged and left out ({_some(bad)})")
            lines = whole.split(b"\n")
            kept = [number for number, row in found if not isinstance(row, UserError)]
            whole = b"".join(lines[number - 1] + b"\n" for number in kept)
        if mend and len(whole) < len(content):
            write_atomic(path, whole)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check its rights.") from error
    return rows


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
