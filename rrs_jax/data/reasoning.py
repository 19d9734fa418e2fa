"""A model's thoughts before it answers, apart from its answer.

Models that reason write their thoughts into the same text, between marks of their family: `<think>` of Qwen,
DeepSeek and many others, `[THINK]` of Mistral, channels of gpt-oss. A chat template may end with the opening
mark, so that the text has the closing one alone. A server with a reasoning parser has the thoughts in a field
of their own (`rrs_jax.data.chat_client`).
"""

import re
from dataclasses import dataclass

REASONING_VERSION = "1"  # raise it when `answer_of` reads a text otherwise
OPENING = "<think>"  # marks thoughts that came apart from an answer

_NAMES = "think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|inner_monologue"


@dataclass(frozen=True)
class Marks:
    """The marks around thoughts.

    Attributes:
      opening: pattern of what begins them.
      closing: pattern of what ends them.
      anywhere: they may also begin on a line behind other text.
    """

    opening: re.Pattern
    closing: re.Pattern
    anywhere: bool = True


def _marks(opening: str, closing: str, anywhere: bool = True) -> Marks:
    flags = re.IGNORECASE | re.DOTALL
    return Marks(re.compile(opening, flags), re.compile(closing, flags), anywhere)


def _tag(names: str, slash: str = "") -> str:
    return rf"(?:<|&lt;)\s*{slash}\s*(?:[a-z]+:)?(?:{names})(?:\s[^<>]*)?\s*(?:>|&gt;)"


MARKS = (
    _marks(_tag("think|thinking"), _tag("think|thinking", "/")),
    # Words that other texts have as tags too.
    _marks(_tag(_NAMES), _tag(_NAMES, "/"), anywhere=False),
    _marks(r"\[think(?:ing)?\]", r"\[/think(?:ing)?\]"),
    _marks(r"◁think▷", r"◁/think▷"),
    _marks(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    _marks(r"<unused94>(?:thought)?", r"<unused95>"),
    _marks(
        r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)(?:.*?)<\|message\|>",
        r"<\|channel\|>final(?:.*?)<\|message\|>",
    ),
    # The same channels where the tokenizer has left out its special tokens.
    _marks(r"analysis(?=[A-Z])", r"assistantfinal", anywhere=False),
)
_WRAPPED = re.compile(
    rf"\s*(?:{_tag('answer|response|final_answer|output')}|<\|begin_of_solution\|>)(.*?)"
    rf"(?:{_tag('answer|response|final_answer|output', '/')}|<\|end_of_solution\|>|$)\s*",
    re.IGNORECASE | re.DOTALL,
)
_END_TOKENS = re.compile(r"(?:<\|(?:end|return)\|>\s*)+$")


def answer_of(text: str) -> str | None:
    """Returns what follows the thoughts: the text itself where it has none, None where they do not end.

    Marks inside a code block, or quoted, belong to an answer about them.
    """
    rest, thoughts = text, False
    while place := _thoughts_end(rest):
        thoughts = True
        if place < 0:
            return None
        rest = rest[place:]
    if not thoughts:
        return text
    rest = _END_TOKENS.sub("", rest)
    wrapped = _WRAPPED.match(rest)
    if wrapped and wrapped.end() == len(rest):
        rest = wrapped[1]
    return rest.strip()


def _thoughts_end(text: str) -> int:
    """Returns where the first thoughts of a text end, 0 where it has none, -1 where they do not end."""
    begins = [(match.start(), match.end(), marks) for marks in MARKS if (match := _opening(text, marks))]
    ends = [match.end() for marks in MARKS if (match := _closing_alone(text, marks))]
    if begins:
        start, inside, marks = min(begins, key=lambda begin: begin[:2])
        if not ends or start < min(ends):
            closing = marks.closing.search(text, inside)
            return closing.end() if closing else -1
    return min(ends, default=0)


def _opening(text: str, marks: Marks) -> re.Match | None:
    """Returns the first opening mark, at the beginning of the text or, where it may, of a line."""
    for match in marks.opening.finditer(text):
        before = text[: match.start()]
        if not before.strip():
            return match
        if not marks.anywhere:
            return None
        if not before.rpartition("\n")[2].strip() and not _quoted(before):
            return match
    return None


def _closing_alone(text: str, marks: Marks) -> re.Match | None:
    """Returns the first closing mark where no opening one stands before it."""
    closing = marks.closing.search(text)
    if closing is None or marks.opening.search(text, 0, closing.start()):
        return None
    return None if _quoted(text[: closing.start()]) else closing


def _quoted(before: str) -> bool:
    """Returns whether what follows `before` lies in a code block or right behind a quotation mark."""
    return before.count("```") % 2 == 1 or before.endswith(("`", '"', "'", "“", "‘"))
