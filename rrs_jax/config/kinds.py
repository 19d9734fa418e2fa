"""Kinds of config values: what a field accepts, how a command line writes it, and how a mistake is worded."""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from rrs_jax.errors import shown_address


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that a field accepts.

    Attributes:
      wants: the end of the sentence "give ...".
      type: the type that ml_collections enforces; object for none.
      read: turns the text of a command line into a value, or raises ValueError.
      accepts: returns True for a value that the field can have.
      show: returns a value as messages show it.
      with_home: returns a value with the home folder in place of `~`; None where it has no path.
    """

    wants: str
    type: type
    read: Callable[[str], object]
    accepts: Callable[[object], bool]
    show: Callable[[object], str] = repr
    with_home: Callable[[object], object] | None = None

    def value_of(self, text: str) -> object:
        """Returns the value that a text stands for, or the text where it stands for none."""
        try:
            return self.read(text)
        except ValueError:
            return text

    def argument(self, text: str) -> object:
        """Returns the value that a text stands for: the `type` of an argument of `argparse`."""
        value = self.value_of(text)
        if not self.accepts(value):
            raise argparse.ArgumentTypeError(f"is {self.show(value)}, give {self.wants}")
        return value


@dataclasses.dataclass(frozen=True)
class Field:
    """One line of the config: dotted name, default, kind, and a sentence with unit and meaning.

    placement: it changes where and how fast a run is done, not what it gives, so that a run may go on with
      another value.
    """

    name: str
    default: Any
    kind: Kind
    sentence: str
    placement: bool = False

    def problem(self, value: object) -> str | None:
        """Returns what is wrong with `value` and what to give instead, or None."""
        if self.kind.accepts(value):
            return None
        return f"{self.name} is {self.kind.show(value)}, give {self.kind.wants}"

    def problem_with_text(self, text: str) -> str | None:
        """Returns what is wrong with a value that the command line writes as `text`, or None."""
        return self.problem(self.kind.value_of(text))


def integer(low: int, high: int | None = None) -> Kind:
    """Returns the kind of an int from `low` to `high`; None is no upper limit."""

    def accepts(value: object) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return low <= value and (high is None or value <= high)

    return Kind(f"a whole number {_range(low, high)}", int, int, accepts)


def number(low: float = -math.inf, high: float | None = None, *, above: bool = False) -> Kind:
    """Returns the kind of a finite float or int from `low` to `high`, without `low` itself for `above`."""

    def accepts(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (low < value if above else low <= value) and (high is None or value <= high)

    wants = _range(low, high)
    if above:
        wants = f"above {low}" + ("" if high is None else f" and at most {high}")
    return Kind(f"a number {wants}", float, float, accepts)


def boolean() -> Kind:
    """Returns the kind of a bool, written true, t, 1, false, f or 0."""
    words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

    def read(text: str) -> object:
        return words.get(text.lower(), text)

    return Kind("true or false", bool, read, lambda value: isinstance(value, bool))


def text(wants: str) -> Kind:
    """Returns the kind of a text that is not blank."""
    return Kind(wants, str, str, lambda value: isinstance(value, str) and bool(value.strip()))


def path(wants: str) -> Kind:
    """Returns the kind of a path, in which `~` is the home folder."""
    return dataclasses.replace(text(wants), with_home=_with_home)


def paths(kind: Kind, *, behind: str = "") -> Kind:
    """Returns a kind of names, each of them a path, or a word and a path with the text `behind` between."""

    def with_home(value: object) -> object:
        return tuple(_with_home(item, behind) for item in value) if isinstance(value, tuple) else value

    return dataclasses.replace(kind, with_home=with_home)


def _with_home(value: object, behind: str = "") -> object:
    if not isinstance(value, str):
        return value
    word, mark, place = value.partition(behind) if behind else ("", "", value)
    return word + mark + os.path.expanduser(place)


def with_home(arguments: Sequence[str] | None) -> list[str]:
    """Returns a command's arguments (default: sys.argv's) with the home folder in place of `~`.

    A shell does so where `~` begins an argument, and leaves `--out=~/data` as it is.
    """
    arguments, home = sys.argv[1:] if arguments is None else arguments, os.path.expanduser("~")
    return [
        re.sub(r"^(--?[\w.]+=)?~(?=/|$)", lambda match: (match[1] or "") + home, word) for word in arguments
    ]


def address() -> Kind:
    """Returns the kind of a server's address. Messages show neither its user and password nor its query."""
    return Kind(
        "an address that begins with http:// or https://, such as http://localhost:8000/v1",
        str,
        str.strip,
        lambda value: isinstance(value, str) and address_problem(value) is None,
        lambda value: repr(shown_address(value) if isinstance(value, str) else value),
    )


def address_problem(written: str) -> str | None:
    """Returns why a text is no address of a server, None where it is one."""
    if re.search(r"\s", written.strip()):
        return "holds white space"
    if not re.match(r"\s*https?://", written, re.IGNORECASE):
        return "does not begin with http:// or https://"
    try:
        parts = urlsplit(written.strip())
        if not parts.hostname:
            return "names no host"
        return "has the port 0" if parts.port == 0 else None
    except ValueError:
        return "names no host, or a port that is no number from 1 to 65535"


def hub_name() -> Kind:
    """Returns the kind of a repository's name on the Hugging Face hub, OWNER/NAME."""
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"

    def accepts(value: object) -> bool:
        return isinstance(value, str) and bool(re.fullmatch(f"{part}/{part}", value, re.ASCII))

    return Kind("a name OWNER/NAME of the Hugging Face hub", str, str, accepts)


def choice(*words: str) -> Kind:
    """Returns the kind of one of the words."""
    return Kind(f"one of {', '.join(words)}", str, str, words.__contains__)


def names(wants: str, *allowed: str, empty: bool = False) -> Kind:
    """Returns the kind of a tuple of different words, out of `allowed` if given; `empty` permits none."""

    def accepts(value: object) -> bool:
        if not isinstance(value, tuple) or not all(isinstance(item, str) and item.strip() for item in value):
            return False
        if len(set(value)) < len(value) or not (value or empty):
            return False
        return not allowed or all(item in allowed for item in value)

    return Kind(wants, tuple, split_names, accepts)


def integers(wants: str, low: int) -> Kind:
    """Returns the kind of a tuple of different ints from `low` on, or of their decimal texts.

    A command line gives texts; whoever uses the field calls `int` on each.
    """

    def accepts(value: object) -> bool:
        if not isinstance(value, tuple) or not all(str(item).isdecimal() for item in value):
            return False
        numbers = [int(item) for item in value]
        return len(set(numbers)) == len(numbers) and all(number >= low for number in numbers)

    return Kind(wants, tuple, split_names, accepts)


def split_names(written: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the names in `q_proj,v_proj`, in `('q_proj', 'v_proj')` or in a sequence, as a tuple."""
    if not isinstance(written, str):
        return tuple(written)
    return tuple(part.strip(" '\"") for part in written.strip("()[] ").split(",") if part.strip(" '\""))


def either(kind: Kind, word: str | int | None) -> Kind:
    """Returns the kind of a value of `kind` or one further word; None stands for the value None."""
    written = str(word)

    def read(text: str) -> object:
        return word if text == written else kind.read(text)

    def accepts(value: object) -> bool:
        return value is None if word is None and value is None else value == word or kind.accepts(value)

    return Kind(f"{kind.wants}, or {written}", object, read, accepts, kind.show, kind.with_home)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known dotted name that `name` was probably meant to be, or None."""
    known = list(known)
    by_leaf = {entry.rsplit(".", 1)[-1]: entry for entry in reversed(known)}
    whole_name = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if whole_name:
        return whole_name[0]
    leaf = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.6)
    return by_leaf[leaf[0]] if leaf else None


def _range(low: float, high: float | None) -> str:
    if high is not None:
        return f"from {low} to {high}"
    return f"of {low} or more" if math.isfinite(low) else "that is finite"
