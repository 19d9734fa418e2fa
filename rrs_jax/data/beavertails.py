"""BeaverTails (Ji et al. 2023): question-answer pairs with labels, and what its labels say about a question.

A row is `prompt`, `response`, `category` (an object of 14 booleans, several may be true) and `is_safe`; both
labels are about the pair, not the prompt, and one pair may have several rows by different annotators. Hence
this rule:

- An answer is unsafe where at least half of its rows say so.
- A question is `harmful` where at least half of its answers are unsafe, `benign` where none is, else `mixed`.
- A harmful question belongs to the category that most of its unsafe rows name; of equally many, the one that
  is named least in the whole source.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rrs_jax.config.vocabulary import CATEGORIES
from rrs_jax.data.questions import clean, words
from rrs_jax.data.tables import KINDS, read_table
from rrs_jax.data.values import numbers_as_text
from rrs_jax.errors import UserError

REPOSITORY = "PKU-Alignment/BeaverTails"
SPLITS = ("330k_train", "330k_test", "30k_train", "30k_test")
HARMFUL_SHARE = 0.5  # of the answers that are unsafe, from which a question is harmful
MAX_LISTED = 20


@dataclass(frozen=True)
class Question:
    """A question of BeaverTails with what its rows say about it.

    Attributes:
      text: the spelling of most rows.
      key: equal for all spellings, see `key_of`.
      kind: "harmful", "mixed" or "benign".
      category: None unless the question is harmful.
      unsafe_share: share of its answers that are unsafe.
      safe_answers: its safe answers, sorted.
    """

    text: str
    key: str
    kind: str  # "harmful", "mixed" or "benign"
    category: str | None
    unsafe_share: float
    safe_answers: tuple[str, ...]


def read_beavertails(source: str, split: str = SPLITS[0]) -> list[Question]:
    """Reads the questions of a local file, or of a hub repository's `split`, sorted by key.

    A file is JSON lines (also packed as .gz or .xz) or Parquet. Nothing depends on the source's order. Raises
    UserError that lists every bad row.
    """
    path = Path(source)
    if not path.is_file():
        path = _fetch(source, split)
    return group_rows(_checked(path, read_table(path)))


def group_rows(rows: Iterable[dict]) -> list[Question]:
    """Groups rows of BeaverTails' schema to questions, one for each key."""
    spellings: dict[str, Counter] = defaultdict(Counter)
    votes: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    named: dict[str, Counter] = defaultdict(Counter)
    everywhere: Counter = Counter()
    for row in rows:
        text, answer = clean(row["prompt"]), row["response"].strip()
        key = key_of(text)
        spellings[key][text] += 1
        votes[key][answer].append(row["is_safe"])
        if not row["is_safe"]:
            flagged = [name for name in CATEGORIES if row["category"][name]]
            named[key].update(flagged)
            everywhere.update(flagged)
    return [_question(key, spellings[key], votes[key], named[key], everywhere) for key in sorted(spellings)]


def key_of(text: str) -> str:
    """Returns a text's key, equal for texts that differ in case, punctuation and spacing alone."""
    return " ".join(words(text)) or clean(text)


def _question(
    key: str, spellings: Counter, votes: dict[str, list[bool]], named: Counter, everywhere: Counter
) -> Question:
    safe = sorted(answer for answer, said in votes.items() if 2 * sum(said) > len(said))
    share = 1 - len(safe) / len(votes)
    kind = "harmful" if share >= HARMFUL_SHARE else "mixed" if share else "benign"
    category = None
    if kind == "harmful" and named:
        category = min(named, key=lambda name: (-named[name], everywhere[name], name))
    text = min(spellings, key=lambda spelling: (-spellings[spelling], spelling))
    return Question(text, key, kind, category, round(share, 4), tuple(answer for answer in safe if answer))


def _checked(path: Path, numbered: Iterator[tuple[int, dict]]) -> Iterator[dict]:
    faults, rows = [], 0
    for number, row in numbered:
        rows += 1
        row = numbers_as_text(row, "prompt", "response")
        if fault := _row_fault(row):
            faults.append(f"row {number}: {fault}")
        elif not faults:
            yield row
    if faults:
        more = [f"  and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
        listed = "\n".join([f"  {fault}" for fault in faults[:MAX_LISTED]] + more)
        raise UserError(
            f"{path}: {len(faults)} of {rows} rows are not in BeaverTails' schema; mend or delete"
            f" them:\n{listed}"
        )
    if not rows:
        raise UserError(f"{path}: holds no row; give a file of BeaverTails.")


def _row_fault(row: dict) -> str | None:
    for field in ("prompt", "response"):
        if not isinstance(row.get(field), str):
            return f"{field} is no text"
    if not row["prompt"].strip():
        return "prompt is empty"
    if not isinstance(row.get("is_safe"), bool):
        return "is_safe is neither true nor false"
    category = row.get("category")
    if not isinstance(category, dict) or not all(isinstance(value, bool) for value in category.values()):
        return "category is no object of 14 booleans"
    if wrong := sorted(set(category) ^ set(CATEGORIES)):
        return f"category has or lacks {', '.join(wrong[:3])}"
    return None


def _fetch(source: str, split: str) -> Path:
    """Downloads the split's file from the hub, or finds it in the hub's cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.endswith(KINDS):
        raise UserError(
            f"--source: {source!r} is no file and no hub repository OWNER/NAME such as {REPOSITORY}."
        )
    if split not in SPLITS:
        raise UserError(f"--split: {split!r} is none of {', '.join(SPLITS)}.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    size, part = split.split("_")
    name = f"round0/{size}/{part}.jsonl.{'xz' if size == '330k' else 'gz'}"
    try:
        return Path(huggingface_hub.hf_hub_download(source, name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{source}: {name} cannot be fetched from the hub ({reason}); download it where there is a"
            " network and give the file itself as --source."
        ) from error
