"""Finds a verdict in a judge's or a writer's reply.

Models write more than the words that they are asked for: thoughts, a preface, a code block, bold type, a JSON
object, the punctuation of another language. A reply counts where exactly one verdict can be found in it.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Iterator

from rrs_jax.data.reasoning import answer_of

# Words of one meaning, for patterns that know only one of them.
SAME = {
    "true": ("yes", "1"),
    "yes": ("true", "1"),
    "1": ("yes", "true"),
    "false": ("no", "0"),
    "no": ("false", "0"),
    "0": ("no", "false"),
}
# Behind a value: that the words are a choice ("yes or no", "1-5"), a fraction, or a share of another scale.
_NO_VALUE = (
    r"(?!\s*\b(?:or|to)\b\s*\w|\s*[/|]\s*(?:yes|no|true|false|safe|unsafe)\b|\s*/\s*(?!5\b)\d|\s*[–-]\s*\d"
    r"|[.,]\d*[1-9])"
)
_NEGATED = re.compile(r"(?:\b(?:not|never|neither|nor|hardly)|n't)\s+(?:\w+ly\s+)?$", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-•‣]|\d+[.)])\s+")
_PREFACE = re.compile(r"[:=]\s*|\b(?:is|are|be|as)\s+", re.IGNORECASE)


def find_verdict(reply: str, pattern: re.Pattern) -> re.Match | None:
    """Returns the match of the one verdict that a reply holds; None where it holds none, or several.

    In this order: values behind the pattern's own labels ("refusal: yes"); for a pattern that begins with `^`
    the whole first line, whatever follows it; a verdict that stands alone on a line or in a JSON object; the
    pattern as it is; and a verdict behind a preface that ends in a colon.
    """
    answer = answer_of(reply)
    if answer is None:
        return None
    text = plain(answer)
    for matches in (
        _by_labels(text, pattern),
        _on_first_line(answer, pattern),
        _alone(text, pattern),
        pattern.finditer(answer),
        pattern.finditer(text),
        _after_prefaces(text, pattern),
    ):
        found: dict[tuple, re.Match] = {}
        for match in matches:
            if _NEGATED.search(match.string[: match.start()]):
                return None
            found.setdefault(tuple((said or "").lower() for said in match.groups()), match)
        if found:
            return next(iter(found.values())) if len(found) == 1 else None
    return None


def plain(text: str) -> str:
    """Returns a text without Markdown, tags and the wide forms of Chinese and Japanese characters."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"^\s*(?:```|~~~)\s*\w*\s*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\(?:boxed|text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"</?[a-z][^<>\n]*>", "\n", text, flags=re.IGNORECASE)
    text = re.sub(r"^\s*[>#]+\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*`$]+", "", text)
    return re.sub(r"(?<!\w)_+|_+(?!\w)", "", text).strip()


def _by_labels(text: str, pattern: re.Pattern) -> Iterator[re.Match]:
    """Yields the match of the values that stand behind the pattern's labels, in any order and anywhere."""
    labels = re.findall(r"(?:\\[A-Za-z])?([A-Za-z]{3,})(?:\\W\*|\\s\*)?:", pattern.pattern)
    values = []
    for label in labels:
        written = (
            rf"(?<![A-Za-z]){label}\w*(?:\W*[:=|→–—-]\W*|\s+is\s+)(?:(?:label|value|verdict)\W+)?(\w+)\b"
        )
        said = {match[1].lower() for match in re.finditer(written + _NO_VALUE, text, re.IGNORECASE)}
        if not said:
            return
        values.append(sorted(said))
    for chosen in itertools.product(*values) if labels else ():
        for words in itertools.product(*((word, *SAME.get(word, ())) for word in chosen)):
            match = pattern.search(
                "\n".join(f"{label}: {word}" for label, word in zip(labels, words, strict=True))
            )
            if match:
                yield match
                break


def _on_first_line(answer: str, pattern: re.Pattern) -> Iterator[re.Match]:
    """Yields the match of a pattern that begins with `^` where no other word stands on the first line.

    Classifiers write on behind their verdict.
    """
    match = pattern.match(answer.strip()) if pattern.pattern.startswith("^") else None
    if match and not re.search(r"\w", match.string[match.end() :].partition("\n")[0]):
        yield match


def _alone(text: str, pattern: re.Pattern) -> Iterator[re.Match]:
    """Yields the verdicts with no other word on their line, or in a value of a JSON object.

    Where a line ends in one, others behind its colons come with it.
    """
    for value in _json_values(text):
        match = pattern.match(value.strip())
        if match and _ends(match):
            yield match
    for line in text.splitlines():
        line = _BULLET.sub("", line)
        starts = [0, *(preface.end() for preface in _PREFACE.finditer(line))]
        matches = [match for start in starts if (match := pattern.match(line[start:].strip()))]
        if any(map(_ends, matches)):
            yield from filter(_ends, matches)
            yield from _after_prefaces(line, pattern)


def _ends(match: re.Match) -> bool:
    """Returns whether no word follows a match."""
    return not re.search(r"\w", match.string[match.end() :])


def _json_values(text: str) -> Iterator[str]:
    """Yields what the JSON objects in a text say: their values, and the names of those that are true."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            yield from _scalars(value)
        place = text.find("{", end)


def _scalars(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if inner is True:
                yield name
            yield from _scalars(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner)
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif value is not None:
        yield str(value)


def _after_prefaces(text: str, pattern: re.Pattern) -> Iterator[re.Match]:
    """Yields the verdicts at the beginning of a line or behind a colon."""
    for line in re.finditer(r"[^\n]+", text):
        starts = [line.start(), *(line.start() + colon.end() for colon in re.finditer(r":\s*", line[0]))]
        for start in starts:
            if match := pattern.match(text[start:]):
                yield match
