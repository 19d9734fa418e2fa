"""Small files: JSON read with bounds, atomic writes, content hashes.

Only the first of a run's processes writes; what the others would write is dropped.
"""

import contextlib
import csv
import hashlib
import json
import lzma
import math
import os
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from rrs_jax.distributed import processes
from rrs_jax.errors import Damaged, UserError

SUM = "content_sum"  # field of a run's own files and rows: the hash of their other fields
UNFINISHED = ".tmp"  # the end of a hidden file's name while it is written
PIECE = 2**20  # bytes of a file that are read at once

MAX_DEPTH = 200  # levels of lists and objects in JSON; the files of models and data sets have below twenty
DAMAGE = (
    AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError,
    EOFError, OSError, struct.error, zlib.error, lzma.LZMAError, csv.Error,
)  # fmt: skip


def cache_folder() -> Path:
    """Returns the folder of what runs share: $RRS_JAX_CACHE, else ~/.cache/rrs_jax."""
    return Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax").expanduser()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes `path`'s name, on failure it is removed.

    A reader therefore sees the old file or the whole new one, never a part. Raises UserError where the
    folder cannot be written or the disk is full.
    """
    path = Path(path)
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        os.close(handle)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); check the folder and its rights."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        make_ordinary(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: writing failed ({error.strerror}); free space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path, older_than: float = 0.0) -> None:
    """Removes files that a kill has left half written below a folder, if they are older than so many
    seconds."""
    for file in folder.rglob(f".*{UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()


def make_ordinary(path: Path) -> None:
    """Gives a file that was made as a private one the rights that an ordinary new file has."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def file_lock(path: str | Path, *, seconds: float = math.inf) -> Iterator[None]:
    """Holds the lock file `path`, so that processes do one after another what they do within.

    The lock goes with the process, however it ends. Waits at most `seconds` for another process, 0 not to
    wait at all, and raises `filelock.Timeout` where that one still holds it. On a file system without locks
    nothing is held, and processes may do the same work side by side.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # what fails below is the lock, not the place
    lock = filelock.FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire(timeout=seconds if math.isfinite(seconds) else -1)
        is_held = True
    except filelock.Timeout:
        raise
    except OSError:
        is_held = False
    try:
        yield
    finally:
        if is_held:
            lock.release()


LONGEST_NAME = 100  # bytes, so that suffixes and temporary names find room in the 255 that file systems have


def safe_name(text: str) -> str:
    """Returns a text of others as the name of one file: itself where it is one, else changed and with a hash.

    The name has letters, digits, "-", "_", ".", "+", "=", "@", "," and blanks within, and does not begin with
    a dot.
    """
    kept = "".join(c if c.isalnum() or c in "-_.+=@, " else "_" for c in text).strip(" ")
    kept = "_" + kept[1:] if kept.startswith(".") else kept
    if kept == text and kept and len(kept.encode()) <= LONGEST_NAME:
        return kept
    beginning = kept.encode()[: LONGEST_NAME - 20].decode("utf-8", "ignore").strip(". ")
    return f"{beginning or '_'}-{content_hash(text)[:8]}"


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Writes `content` (text as UTF-8) so that `path` is never half written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


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


def json_for_html(value: object) -> str:
    """Returns JSON for a script element, without "</script" and "<!--", which would end or change it."""
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@contextlib.contextmanager
def reading(path: object, advice: str = "fetch it again") -> Iterator[None]:
    """Turns what a damaged or foreign file makes its reader raise into a UserError with the file's name."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {advice}.") from error


def reason_of(error: BaseException) -> str:
    """Returns an exception's message in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{str(error)[:80]} is missing"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class JSONFault(ValueError):
    """A text that is no JSON, or more than this program reads; `line` counts from 1, None for all of it."""

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason)
        self.line = line


def parse_json(text: str, *, halves: bool = False) -> Any:
    """Returns the value of a JSON text; NaN, which Python writes, is None there as in tables.

    Raises JSONFault for what is no JSON, nesting of more than 200 levels, numbers beyond 1.8e308, and halves
    of characters, unless the caller looks for these (`halves`).
    """
    try:
        value = _DECODER.decode(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise JSONFault(error.msg, error.lineno) from error
    except RecursionError as error:
        raise JSONFault(TOO_DEEP) from error
    except ValueError as error:  # of the functions for numbers
        raise JSONFault(str(error)) from error
    if (text.count("[") + text.count("{") > MAX_DEPTH) and _depth(value) > MAX_DEPTH:
        raise JSONFault(TOO_DEEP)
    if not halves and (fault := half_character_fault(value) if may_have_halves(text) else None):
        raise JSONFault(fault)
    return value


TOO_DEEP = f"lists and objects within one another to more than {MAX_DEPTH} levels"


def _no_constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"holds {name}, which is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"holds the number {text[:20]}, which is too large")
    return number


def _whole(text: str) -> int:
    """A whole number that is finite as a float too; rounding and comparing fail on others."""
    if len(text) > sys.float_info.max_10_exp:
        _finite(text)
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)


def _depth(value: object) -> int:
    """Returns how many lists and objects lie within one another, without recursion."""
    level, depth = [value], 0
    while level := [entry for entry in level if isinstance(entry, list | dict)]:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth


def may_have_halves(text: str) -> bool:
    """Returns True where a JSON text has an escape that could write half of a UTF-16 pair."""
    return "\\ud" in text or "\\uD" in text or any("\ud800" <= c <= "\udfff" for c in text)


def has_half_character(value: object) -> bool:
    """Returns True where a text in the value holds half of a UTF-16 pair, which UTF-8 cannot hold."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(map(has_half_character, (*value, *value.values())))
    return isinstance(value, list | tuple) and any(map(has_half_character, value))


def half_character_fault(value: object) -> str | None:
    """Returns what is wrong with a value that has half of a character; None where nothing is.

    JSON's escapes can write one, as texts do that were cut in the middle of an emoji.
    """
    if not has_half_character(value):
        return None
    named = (
        [name for name, entry in value.items() if has_half_character(entry)]
        if isinstance(value, dict)
        else []
    )
    where = f" in {', '.join(map(ascii, named))}" if named else ""
    return f"holds half a character{where} (an escape such as \\ud83d without its other half); mend the text"


def read_text(path: str | Path) -> str:
    """Returns a file's text. Raises UserError where it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # a name with what no name can hold
        raise UserError(f"{path}: cannot be read ({reason_of(error)}).") from error


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


def replace_surrogates(text: str) -> str:
    """Returns the text with U+FFFD for every lone surrogate, which UTF-8 cannot hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def content_hash(*parts: object) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of the parts; bytes, or a view of them, as they are, all
    else as JSON.

    A text that UTF-8 cannot hold has a hash too.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part
            if isinstance(part, bytes | memoryview)
            else json.dumps(part, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def file_digest(path: str | Path, places: Iterable[tuple[int, int]] | None = None) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of a file's size and bytes, or of those bytes of it that
    lie at `places` (start, length).

    Raises UserError where the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(size.to_bytes(8, "little"))
            for start, length in ((0, size),) if places is None else places:
                for at in range(start, min(start + length, size), PIECE):
                    digest.update(os.pread(file.fileno(), min(PIECE, start + length - at), at))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    return digest.hexdigest()[:16]
