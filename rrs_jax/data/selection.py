"""Chooses which of BeaverTails' questions a data set may have, and the order in which they are drawn.

Every order is that of a hash of the seed and the question, so that it depends neither on the source's order
nor on the sizes asked for: a smaller data set is part of a larger one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rrs_jax.config.vocabulary import CATEGORIES
from rrs_jax.data.beavertails import Question
from rrs_jax.data.duplicates import QuestionIndex, near_groups
from rrs_jax.data.questions import MAX_WORDS, is_question, unspeakable
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash

KINDS = ("harmful", "mixed", "benign")  # of nearly equal questions the first kind stays


@dataclass
class Pool:
    """The questions that can be drawn, in drawn order.

    Attributes:
      harmful: by category.
      benign: questions without an unsafe answer.
      answered: a safe answer for each harmful or benign question that has one.
      dropped: how many questions were left out, by reason.
    """

    harmful: dict[str, list[Question]]  # by category
    benign: list[Question]
    answered: list[tuple[Question, str]]  # a safe answer for each harmful or benign question that has one
    dropped: Counter


def make_pool(
    questions: Iterable[Question], excluded: Iterable[str] = (), *, seed: int = 0, max_words: int = MAX_WORDS
) -> Pool:
    """Returns the questions that a voice can read, that are none of the `excluded`, and of which no two are
    nearly equal.

    Mixed questions stand in no data set. `excluded` are texts of evaluation questions.
    """
    dropped: Counter = Counter()
    forbidden = QuestionIndex((text, text) for text in set(excluded))
    usable = []
    for question in sorted(questions, key=lambda question: question.key):
        if reason := _reason(question, forbidden, max_words):
            dropped[reason] += 1
        else:
            usable.append(question)
    kept = []
    for group in near_groups([question.text for question in usable]):
        first, *others = sorted(
            (usable[i] for i in group),
            key=lambda question: (KINDS.index(question.kind), _draw(seed, question.key)),
        )
        kept.append(first)
        dropped["nearly equal to another question"] += len(others)
    dropped["safe and unsafe answers"] += sum(question.kind == "mixed" for question in kept)
    kept = sorted(
        (question for question in kept if question.kind != "mixed"), key=lambda q: _draw(seed, q.key)
    )
    return Pool(
        harmful={category: [q for q in kept if q.category == category] for category in CATEGORIES},
        benign=[q for q in kept if q.kind == "benign"],
        answered=_draw_answers(kept, seed),
        dropped=+dropped,
    )


def _reason(question: Question, forbidden: QuestionIndex, max_words: int) -> str | None:
    if reason := unspeakable(question.text, max_words):
        return reason.split(" (")[0]
    if not is_question(question.text):
        return "no question"
    if question.kind == "harmful" and question.category is None:
        return "harmful, but of no category"
    if forbidden.near(question.text):
        return "nearly equal to an evaluation question"
    return None


def _draw(seed: int, *parts: str) -> str:
    return content_hash(seed, *parts)


def _draw_answers(questions: list[Question], seed: int) -> list[tuple[Question, str]]:
    """Draws among all pairs, as the paper does, and keeps the first pair of each question."""
    pairs = sorted(
        ((question, answer) for question in questions for answer in question.safe_answers),
        key=lambda pair: _draw(seed, pair[0].key, pair[1]),
    )
    first: dict[str, tuple[Question, str]] = {}
    for question, answer in pairs:
        first.setdefault(question.key, (question, answer))
    return list(first.values())


def take(what: str, items: list, wanted: int, flag: str) -> list:
    """Returns the first `wanted` items; raises UserError where there are fewer."""
    if len(items) < wanted:
        raise UserError(
            f"{flag}: the source has {len(items)} {what}, not {wanted}; ask for fewer or give a larger"
            " source."
        )
    return items[:wanted]
