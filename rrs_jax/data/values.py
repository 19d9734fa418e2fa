"""Values of a row by their kind, the same for every file format: texts, categories, lengths.

A number counts as its text. What a library writes for a missing value (null, NaN, an empty cell) is None, and
a list of one entry is the entry. Everything else of a wrong kind raises ValueError with the reason.
"""

import json
import math


def is_missing(value: object) -> bool:
    """Returns True for None, NaN, texts, lists and objects without content, and a list of one of these."""
    if isinstance(value, list | tuple) and len(value) == 1:
        return is_missing(value[0])
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value == "" or value == [] or value == {}


def text_of(value: object) -> str | None:
    """Returns a value as text; None where it is missing."""
    if is_missing(value):
        return None
    if isinstance(value, list | tuple) and len(value) == 1:
        return text_of(value[0])
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
