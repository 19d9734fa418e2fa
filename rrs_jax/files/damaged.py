"""Faults of damaged and foreign files, told in a sentence with the name of the file."""

import contextlib
import csv
import lzma
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from rrs_jax.errors.kinds import UserError

DAMAGE = (
    AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError,
    EOFError, OSError, struct.error, zlib.error, lzma.LZMAError, csv.Error,
)  # fmt: skip


Value = TypeVar("Value")


class Named(dict[str, Value]):
    """Content of a file by name; a name that it lacks is told with the file and what to do.

    The one answer to files of other versions, whose names may be others. `get` and `in` ask without it.
    """

    def __init__(self, values: Mapping[str, Value], file: Path, advice: str):
        super().__init__(values)
        self.file, self.advice = file, advice

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(f"{self.file}: holds no {name}, which this version reads; {self.advice}.")


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


def read_text(path: str | Path) -> str:
    """Returns a file's text. Raises UserError where it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # a name with what no name can hold
        raise UserError(f"{path}: cannot be read ({reason_of(error)}).") from error
