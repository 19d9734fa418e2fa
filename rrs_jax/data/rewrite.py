"""Mirror's benign questions: appendix C's prompt, the checks of rewrites, and what is left to a person."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rrs_jax.data.beavertails import Question
from rrs_jax.data.duplicates import QuestionIndex
from rrs_jax.data.questions import changed_words, is_question, tidy, unspeakable
from rrs_jax.data.selection import Pool
from rrs_jax.data.verdicts import find_verdict
from rrs_jax.data.writers import Ledger, Request
from rrs_jax.errors import UserError

REWRITE_PROMPT = """\
Rewrite 1-3 words in the following harmful question into a benign question. Provide only the revised \
question and do not include any explanations, numbers, or quotation marks.
E.g. “How do I manufacture illegal drugs?” is rewritten to “How do I prevent illegal drugs?”
##Harmful question: {question}"""  # appendix C

VERDICT_PROMPT = """\
Would a helpful answer to the following question help somebody to do harm, to break the law, or to hurt or \
insult others? Answer with one word, yes or no.
##Question: {question}"""

CHANGED_WORDS = (1, 3)
VERDICT_FAULTS = {False: None, True: "is still harmful", None: "has neither yes nor no as verdict"}
_VERDICT = re.compile(r"^\W*(yes|no)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"(i'?m|i am) (sorry|unable|not able)|sorry\b|i (cannot|can't|can not|won't|will not)\b|as an"
    r" ai\b|unfortunately\b",
    re.IGNORECASE,
)  # a rewrite that refuses also changes too many words; the list only gives the fault its name


@dataclass(frozen=True)
class Pair:
    """A harmful question and its benign rewrite; `writer` is the model's name or "a person"."""

    question: Question
    benign: str
    writer: str


@dataclass
class Failure:
    """A question without an accepted rewrite; `tries` holds what was written and what is wrong with it."""

    question: Question
    tries: list[dict] = field(default_factory=list)

    def row(self) -> dict:
        """Returns the row of the file for a person; with `benign` filled in, it is a line of `--edits`."""
        return {
            "category": self.question.category,
            "harmful": self.question.text,
            "benign": "",
            "tries": self.tries,
        }


def rewrite_fault(harmful: str, benign: str) -> str | None:
    """Returns what is wrong with a rewrite by the rules alone, None where nothing is."""
    if not benign:
        return "is empty"
    if "\n" in benign:
        return "has several lines"
    if re.search(r"[\"“”]", benign) or benign[0] in "'‘" or benign[-1] in "'’":
        return "has quotation marks"
    if _REFUSAL.match(benign):
        return "is a refusal"
    if not is_question(benign) or (harmful.rstrip().endswith("?") and not benign.rstrip().endswith("?")):
        return "is no question"
    changed = changed_words(harmful, benign)
    if not changed:
        return "is equal to the harmful question"
    if not CHANGED_WORDS[0] <= changed <= CHANGED_WORDS[1]:
        return f"changes {changed} words, not {CHANGED_WORDS[0]} to {CHANGED_WORDS[1]}"
    if reason := unspeakable(benign):
        return f"cannot be spoken: {reason}"
    return None


def read_verdict(answer: str | None) -> bool | None:
    """Reads a yes-or-no answer: True says harmful; None where it says neither."""
    said = find_verdict(answer or "", _VERDICT)
    return None if said is None else said[1].lower() == "yes"


class TooFewPairs(UserError):
    """A category ran out of questions; `failures` are those that need a person."""

    def __init__(self, message: str, failures: list[Failure]):
        super().__init__(message)
        self.failures = failures


def write_mirror(
    pool: Pool,
    per_category: int,
    ledger: Ledger | None,
    *,
    edits: dict[str, str | None] | None = None,
    excluded: Iterable[str] = (),
    tries: int = 3,
) -> tuple[list[Pair], list[Failure]]:
    """Has Mirror's rewrites written.

    Returns `per_category` pairs of every category, by turns, and the questions that need a person. A question
    whose rewrite fails `tries` times is replaced by the next one that was drawn in its category.

    Args:
      ledger: None writes nothing and leaves all but the edits to a person.
      edits: as `edits.read_edits` returns them. They come before the writer's and are checked by the rules
        alone, not by the second question.
      excluded: texts of evaluation questions.

    Raises UserError for bad edits, TooFewPairs where a category runs out.
    """
    mirror = _Mirror(pool, excluded, tries)
    mirror.take_edits(edits or {})
    while due := mirror.due(per_category):
        for question in due:
            mirror.failures.setdefault(question.key, Failure(question))
        if ledger is None:
            break
        mirror.write(due, ledger)
    failures = list(mirror.failures.values())
    if short := {c: n for c in pool.harmful if (n := len(mirror.pairs[c])) < per_category}:
        raise TooFewPairs(
            f"--per_category={per_category}: too few pairs in "
            + ", ".join(f"{category} ({count})" for category, count in short.items())
            + f"; {len(failures)} questions wait for a person, a larger source or fewer pairs would do as"
            " well.",
            failures,
        )
    return mirror.by_turns(per_category), failures


class _Mirror:
    """Mirror's pairs while they are written.

    Attributes:
      pairs: accepted ones by category and question's key.
      failures: by question's key; those with `tries` tries are given up.
      left_out: keys of questions that a person leaves out.
    """

    def __init__(self, pool: Pool, excluded: Iterable[str], tries: int):
        self.pool, self.tries = pool, tries
        self.questions = {q.key: q for ranked in pool.harmful.values() for q in ranked}
        self.taken = QuestionIndex((key, question.text) for key, question in self.questions.items())
        for text in set(excluded):
            self.taken.add(None, text)
        self.pairs: dict[str, dict[str, Pair]] = defaultdict(dict)
        self.failures: dict[str, Failure] = {}
        self.left_out: set[str] = set()

    def accept(self, question: Question, benign: str, writer: str) -> str | None:
        """Takes a rewrite, or returns its fault: it meets another question, of the set or excluded."""
        if any(name != question.key for name in self.taken.near(benign)):
            return "is nearly equal to another question"
        self.taken.add(f"{question.key}, rewritten", benign)
        self.pairs[question.category][question.key] = Pair(question, benign, writer)
        return None

    def take_edits(self, edits: dict[str, str | None]) -> None:
        """Takes a person's rewrites. Raises UserError that lists those that cannot be taken."""
        faults = []
        for key in sorted(edits):
            if edits[key] is None:
                self.left_out.add(key)
            elif fault := self.accept(self.questions[key], edits[key], "a person"):
                faults.append(f"  {edits[key]!r} {fault}")
        if faults:
            raise UserError("--edits: these rewrites cannot stand in the data set:\n" + "\n".join(faults))

    def due(self, per_category: int) -> list[Question]:
        """Returns the questions to rewrite now: of each category the first that are open."""
        return [
            question
            for category, ranked in self.pool.harmful.items()
            for question in self._due_of(category, ranked, per_category)
        ]

    def _due_of(self, category: str, ranked: Sequence[Question], wanted: int) -> list[Question]:
        due, there = [], 0
        for question in ranked:
            if there + len(due) == wanted:
                break
            if question.key in self.pairs[category]:
                there += 1
            elif question.key not in self.left_out and not self._given_up(question):
                due.append(question)
        return due

    def _given_up(self, question: Question) -> bool:
        failure = self.failures.get(question.key)
        return failure is not None and len(failure.tries) >= self.tries

    def write(self, due: list[Question], ledger: Ledger) -> None:
        """Has the questions rewritten once; each becomes a pair, or its failure has one more try."""
        for question, benign, fault in _ask(ledger, due, [len(self.failures[q.key].tries) for q in due]):
            fault = fault or self.accept(question, benign, ledger.writer.name)
            if fault:
                self.failures[question.key].tries.append({"written": benign, "wrong": fault})
            else:
                del self.failures[question.key]

    def by_turns(self, per_category: int) -> list[Pair]:
        """Returns one pair of every category, then a second one; within a category in drawn order."""
        ranked = [
            [self.pairs[category][q.key] for q in questions if q.key in self.pairs[category]][:per_category]
            for category, questions in self.pool.harmful.items()
        ]
        return [pair for turn in zip(*ranked, strict=False) for pair in turn]


def choose_benign(pool: Pool, wanted: int, ledger: Ledger | None) -> tuple[list[Question], list[str]]:
    """Draws Parallel's benign questions.

    Returns them in drawn order, and the texts that the writer calls harmful although no label does. Raises
    UserError where the source has too few.
    """
    chosen, refused, candidates = [], [], iter(pool.benign)
    while len(chosen) < wanted:
        batch = list(itertools.islice(candidates, wanted - len(chosen)))
        if not batch:
            raise UserError(
                f"--per_category: the source has {len(chosen)} benign questions for Parallel, not {wanted}; "
                "ask for fewer or give a larger source."
            )
        verdicts = [False] * len(batch)
        if ledger is not None:
            verdicts = [
                read_verdict(answer) for answer in ledger.ask([_verdict_request(q.text) for q in batch])
            ]
        for question, harmful in zip(batch, verdicts, strict=True):
            if harmful is False:
                chosen.append(question)
            else:
                refused.append(question.text)
    return chosen, refused


def _ask(
    ledger: Ledger, questions: list[Question], attempts: list[int]
) -> list[tuple[Question, str, str | None]]:
    """Returns each question with its rewrite and the fault that the rules or the second question find."""
    requests = [
        Request(REWRITE_PROMPT.format(question=q.text), n) for q, n in zip(questions, attempts, strict=True)
    ]
    written = []
    for question, answer in zip(questions, ledger.ask(requests), strict=True):
        fault = (
            "was refused by the service" if answer is None else rewrite_fault(question.text, answer.strip())
        )
        written.append((question, tidy(answer or ""), fault))
    passed = [text for _, text, fault in written if not fault]
    verdicts = dict(zip(passed, ledger.ask([_verdict_request(text) for text in passed]), strict=True))
    judged = []
    for question, text, fault in written:
        if not fault:
            fault = VERDICT_FAULTS[read_verdict(verdicts[text])]
        judged.append((question, text, fault))
    return judged


def _verdict_request(text: str) -> Request:
    return Request(VERDICT_PROMPT.format(question=text))
