"""Values of a row by their kind, the same for every file format: texts, categories, lengths.

A number counts as its text. What a library writes for a missing value (null, NaN, an empty cell) is None, and
a list of one entry is the entry. Everything else of a wrong kind raises ValueError with the reason.
"""

import json
import math


def is_missing(value: object) -> bool:
    """Returns True for None, NaN, and texts, lists and objects without content."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value == "" or value == [] or value == {}


def text_of(value: object) -> str | None:
    """Returns a value as text; None where it is missing."""
    if isinstance(value, list | tuple) and len(value) == 1:
        return text_of(value[0])
    if is_missing(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {shown(value)}, no text")
    return value


def numbers_as_text(row: dict, *names: str) -> dict:
    """Returns a row with the numbers in these fields as texts; every other value stays as it is."""
    numbers = [n for n in names if isinstance(row.get(n), int | float) and not isinstance(row[n], bool)]
    return row | {name: text_of(row[name]) for name in numbers if math.isfinite(row[name])}


def category_of(value: object) -> str:
    """Returns a category as text, "none" where it is missing; of several or of flags, the names by commas."""
    if isinstance(value, dict) and value and all(isinstance(flag, bool) for flag in value.values()):
        value = [name for name, flag in value.items() if flag]
    if isinstance(value, list | tuple):
        return ",".join(text for entry in value if (text := text_of(entry))) or "none"
    return text_of(value) or "none"


def seconds_of(value: object) -> float | None:
    """Returns a length in seconds; None where it is missing."""
    if is_missing(value):
        return None
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < math.inf:
        raise ValueError(f"is {shown(value)}, no positive number")
    return number


def shown(value: object) -> str:
    """Returns the beginning of a value as JSON writes it, for a message."""
    try:
        return json.dumps(value)[:40]
    except (TypeError, ValueError):
        return repr(value)[:40]


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
