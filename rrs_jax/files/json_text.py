"""JSON read with bounds, and what it may not hold."""

import json
import math
import sys
from typing import Any

MAX_DEPTH = 200  # levels of lists and objects in JSON; the files of models and data sets have below twenty
TOO_DEEP = f"lists and objects within one another to more than {MAX_DEPTH} levels"


class JSONFault(ValueError):
    """A text that is no JSON, or more than this program reads; `line` counts from 1, None for all of it."""

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason)
        self.line = line


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


def replace_surrogates(text: str) -> str:
    """Returns the text with U+FFFD for every lone surrogate, which UTF-8 cannot hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def json_for_html(value: object) -> str:
    """Returns JSON for a script element, without "</script" and "<!--", which would end or change it."""
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
