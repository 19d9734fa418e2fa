"""Reads published question sets from their own files as evaluation rows. `FORMAT:PATH` names one.

| format         | file                                                       | label of its questions
|
| aiah           | folder of JSON indexes: scenario, audio_file, question     | benign where the index's path
has |
|                |                                                            | "benign", else harmful
|
| figstep        | safebench.csv                                              | harmful
|
| xstest         | CSV: prompt, type (and label)                              | borderline; unsafe contrasts
|
|                |                                                            | harmful
|
| jailbreakbench | CSV: Goal, Category; or a folder of both                   | harmful, or benign by the
file's  |
|                |                                                            | name
|
| harmbench      | CSV: Behavior, FunctionalCategory, SemanticCategory, ...   | harmful; standard behaviours
only |
| strongreject   | CSV: forbidden_prompt, category                            | harmful
|
| or_bench       | CSV: prompt, category                                      | borderline; harmful where the
|
|                |                                                            | file's name has "toxic"
|
| beavertails    | JSON lines, also .gz or .xz                                | harmful: questions with an
unsafe |
|                |                                                            | answer
|
| jsonl          | JSON lines: question or prompt, label; id, category, audio | as it says
|

An id begins with the format and is the same in every reading. Nothing is fetched: the files are the user's.
"""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rrs_jax.data.manifest import LABELS
from rrs_jax.data.starter import CATEGORIES
from rrs_jax.errors import UserError
from rrs_jax.files import parse_jsonl


def read_question_sets(written: Sequence[str]) -> list[dict]:
    """Reads the rows of all sets; `written` is a list of `FORMAT:PATH`.

    A row has id, pair_id, label, category, question and audio (an absolute path; None where it is not spoken
    yet). Raises UserError that names the file and what it lacks.
    """
    rows = [row for name in written for row in _read_set(name)]
    seen = set()
    for row in rows:
        if row["id"] in seen:
            raise UserError(f"evaluate.questions: id {row['id']} occurs twice; name each set once.")
        seen.add(row["id"])
    return rows


def question_set_problem(written: str) -> str | None:
    """Returns what is wrong with a `FORMAT:PATH`, None where nothing is."""
    name, _, path = written.partition(":")
    if name not in READERS or not path:
        return f"{written} is no question set; write FORMAT:PATH with one of {', '.join(READERS)}"
    return None if Path(path).exists() else f"question set {written}: {path} does not exist"


def question_sets_name(written: Sequence[str]) -> str:
    """Returns the formats joined by hyphens, for file names."""
    return "-".join(dict.fromkeys(name.partition(":")[0] for name in written))


def _read_set(written: str) -> list[dict]:
    if problem := question_set_problem(written):
        raise UserError(f"evaluate.questions: {problem}.")
    name, _, path = written.partition(":")
    rows = []
    for number, (label, category, question, rest) in enumerate(READERS[name](Path(path)), start=1):
        identity = rest.get("id") or f"{name}-{number:04d}"
        rows.append(
            {
                "id": identity,
                "pair_id": rest.get("pair_id") or identity,
                "label": label,
                "category": category or "none",
                "question": question.strip(),
                "response": None,
                "audio": rest.get("audio"),
                "voice": None,
                "seconds": None,
            }
        )
    if not rows:
        raise UserError(f"{path}: holds no question of the set {name}.")
    return rows


Read = Iterator[tuple[str, str, str, dict]]  # label, category, question, and what else is known


def _aiah(path: Path) -> Read:
    indexes = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    for index in indexes:
        benign = "benign" in str(index.relative_to(root)).lower()
        for number, entry in enumerate(_json_list(index), start=1):
            if missing := [key for key in ("scenario", "audio_file", "question") if not entry.get(key)]:
                raise UserError(f"{index}, entry {number}: has no {', '.join(missing)}.")
            clip = index.parent / entry["audio_file"]
            if not clip.is_file():
                raise UserError(f"{index}, entry {number}: the audio file {clip} does not exist.")
            label = "benign" if benign else "harmful"
            # Twins bear the same file name in two folders.
            pair = f"aiah-{entry['scenario']}-{clip.stem}"
            yield (
                label,
                entry["scenario"],
                entry["question"],
                {"id": f"{pair}-{label}", "pair_id": pair, "audio": str(clip.absolute())},
            )


def _figstep(path: Path) -> Read:
    for row in _csv(path, "category_id", "task_id", "category_name", "question"):
        identity = f"figstep-{int(row['category_id']):02d}-{int(row['task_id']):02d}"
        yield "harmful", row["category_name"], row["question"], {"id": identity}


def _xstest(path: Path) -> Read:
    for row in _csv(path, "prompt", "type"):
        unsafe = row["type"].startswith("contrast_") or row.get("label") == "unsafe"
        yield "harmful" if unsafe else "borderline", row["type"], row["prompt"], {}


def _jailbreakbench(path: Path) -> Read:
    for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
        label = "benign" if "benign" in file.name.lower() else "harmful"
        for number, row in enumerate(_csv(file, "Goal", "Category"), start=1):
            pair = f"jailbreakbench-{number:03d}"
            yield label, row["Category"], row["Goal"], {"id": f"{pair}-{label}", "pair_id": pair}


def _harmbench(path: Path) -> Read:
    """Reads the standard behaviours.

    Contextual behaviours need a page of context, copyright ones a comparison of text: both are left out.
    """
    for row in _csv(path, "Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID"):
        if row["FunctionalCategory"] == "standard":
            yield (
                "harmful",
                row["SemanticCategory"],
                row["Behavior"],
                {"id": f"harmbench-{row['BehaviorID']}"},
            )


def _strongreject(path: Path) -> Read:
    for row in _csv(path, "forbidden_prompt", "category"):
        yield "harmful", row["category"], row["forbidden_prompt"], {}


def _or_bench(path: Path) -> Read:
    label = "harmful" if "toxic" in path.name.lower() else "borderline"
    for row in _csv(path, "prompt", "category"):
        yield label, row["category"], row["prompt"], {}


def _beavertails(path: Path) -> Read:
    """Reads rows of pairs (category: 14 booleans) or of the evaluation set (category: a name).

    Each question comes once, under the first of its categories.
    """
    seen = set()
    for number, row in enumerate(parse_jsonl(path, _text(path)), start=1):
        category = row.get("category")
        if not isinstance(row.get("prompt"), str) or not isinstance(category, dict | str):
            raise UserError(
                f"{path}, line {number}: has no prompt with a category; give a file of BeaverTails."
            )
        question = row["prompt"].strip()
        if isinstance(category, dict):
            category = next((name for name in CATEGORIES if category.get(name)), None)
            if row.get("is_safe", True) or category is None:
                continue
        if question not in seen:
            seen.add(question)
            yield "harmful", category, question, {}


def _jsonl(path: Path) -> Read:
    for number, row in enumerate(parse_jsonl(path, _text(path)), start=1):
        question, label = row.get("question") or row.get("prompt"), row.get("label")
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{path}, line {number}: has no question; write one under question or prompt.")
        if label not in LABELS:
            raise UserError(f"{path}, line {number}: label is {label!r}; write one of {', '.join(LABELS)}.")
        audio = row.get("audio")
        if audio and not (path.parent / audio).is_file():
            raise UserError(f"{path}, line {number}: the audio file {path.parent / audio} does not exist.")
        kept = {name: row[name] for name in ("id", "pair_id") if isinstance(row.get(name), str)}
        if audio:
            kept["audio"] = str((path.parent / audio).absolute())
        yield label, row.get("category", "none"), question, kept


READERS: dict[str, Callable[[Path], Read]] = {
    "aiah": _aiah,
    "figstep": _figstep,
    "xstest": _xstest,
    "jailbreakbench": _jailbreakbench,
    "harmbench": _harmbench,
    "strongreject": _strongreject,
    "or_bench": _or_bench,
    "beavertails": _beavertails,
    "jsonl": _jsonl,
}


def _csv(path: Path, *columns: str) -> Iterable[dict]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        has = ", ".join(reader.fieldnames or ()) or "none"
        raise UserError(f"{path}: has no column {', '.join(missing)}; it has {has}.")
    for row in reader:
        if empty := [name for name in columns if not (row[name] or "").strip()]:
            raise UserError(
                f"{path}, line {reader.line_num}: {', '.join(empty)} is empty; mend or delete the row."
            )
        yield row


def _json_list(path: Path) -> list[dict]:
    try:
        entries = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); fetch it again.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: is no JSON list of objects, as an index is.")
    return entries


def _text(path: Path) -> str:
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opened(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give the set's file as it is published."
        ) from error
