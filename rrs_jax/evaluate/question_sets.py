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

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rrs_jax.config.vocabulary import CATEGORIES
from rrs_jax.data.bad_rows import BadRow, BadRows
from rrs_jax.data.rows import LABELS, clip_fault, own_row, taken_names
from rrs_jax.data.tables import read_rows, table_kind
from rrs_jax.data.values import text_of
from rrs_jax.errors import UserError
from rrs_jax.progress import say


def read_question_sets(written: Sequence[str], skip_bad: bool = False) -> list[dict]:
    """Reads the rows of all sets; `written` is a list of `FORMAT:PATH`.

    A row has id, pair_id, label, category, question and audio (an absolute path; None where it is not spoken
    yet). Raises UserError that names the file and what it lacks; `skip_bad` leaves out the rows that cannot
    be used and tells them.
    """
    rows = [row for name in written for row in _read_set(name, skip_bad)]
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
    return None if Path(path).expanduser().exists() else f"question set {written}: {path} does not exist"


def question_sets_name(written: Sequence[str]) -> str:
    """Returns the formats joined by hyphens, for file names."""
    return "-".join(dict.fromkeys(name.partition(":")[0] for name in written))


def _read_set(written: str, skip_bad: bool) -> list[dict]:
    if problem := question_set_problem(written):
        raise UserError(f"evaluate.questions: {problem}.")
    name, _, path = written.partition(":")
    rows = []
    for number, (label, category, question, rest) in enumerate(
        READERS[name](Path(path).expanduser(), skip_bad), start=1
    ):
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


def _aiah(path: Path, skip_bad: bool) -> Read:
    indexes = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    for index in indexes:
        benign = "benign" in str(index.relative_to(root)).lower()
        columns = ("scenario", "audio_file", "question")
        folder = index.parent
        for row in _rows(
            index, skip_bad, *columns, fault=lambda row, folder=folder: clip_fault(row["audio_file"], folder)
        ):
            clip = index.parent / row["audio_file"]
            label = "benign" if benign else "harmful"
            # Twins bear the same file name in two folders.
            pair = f"aiah-{row['scenario']}-{clip.stem}"
            yield (
                label,
                row["scenario"],
                row["question"],
                {"id": f"{pair}-{label}", "pair_id": pair, "audio": str(clip.absolute())},
            )


def _figstep(path: Path, skip_bad: bool) -> Read:
    def fault(row: dict) -> str | None:
        wrong = [name for name in ("category_id", "task_id") if not row[name].strip().isdecimal()]
        return f"{', '.join(wrong)} is no whole number" if wrong else None

    for row in _rows(path, skip_bad, "category_id", "task_id", "category_name", "question", fault=fault):
        identity = f"figstep-{int(row['category_id']):02d}-{int(row['task_id']):02d}"
        yield "harmful", row["category_name"], row["question"], {"id": identity}


def _xstest(path: Path, skip_bad: bool) -> Read:
    for row in _rows(path, skip_bad, "prompt", "type"):
        unsafe = row["type"].startswith("contrast_") or row.get("label") == "unsafe"
        yield "harmful" if unsafe else "borderline", row["type"], row["prompt"], {}


def _jailbreakbench(path: Path, skip_bad: bool) -> Read:
    for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
        label = "benign" if "benign" in file.name.lower() else "harmful"
        for number, row in enumerate(_rows(file, skip_bad, "Goal", "Category"), start=1):
            pair = f"jailbreakbench-{number:03d}"
            yield label, row["Category"], row["Goal"], {"id": f"{pair}-{label}", "pair_id": pair}


def _harmbench(path: Path, skip_bad: bool) -> Read:
    """Reads the standard behaviours.

    Contextual behaviours need a page of context, copyright ones a comparison of text: both are left out.
    """
    columns = ("Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID")
    for row in _rows(path, skip_bad, *columns):
        if row["FunctionalCategory"] == "standard":
            identity = f"harmbench-{row['BehaviorID']}"
            yield "harmful", row["SemanticCategory"], row["Behavior"], {"id": identity}


def _strongreject(path: Path, skip_bad: bool) -> Read:
    for row in _rows(path, skip_bad, "forbidden_prompt", "category"):
        yield "harmful", row["category"], row["forbidden_prompt"], {}


def _or_bench(path: Path, skip_bad: bool) -> Read:
    label = "harmful" if "toxic" in path.name.lower() else "borderline"
    for row in _rows(path, skip_bad, "prompt", "category"):
        yield label, row["category"], row["prompt"], {}


def _beavertails(path: Path, skip_bad: bool) -> Read:
    """Reads rows of pairs (category: 14 booleans) or of the evaluation set (category: a name).

    Each question comes once, under the first of its categories.
    """
    seen, bad, count = set(), BadRows(path, skip_bad), 0
    for place, row in read_rows(path, table_kind(path, ".jsonl")):
        if row is None:
            continue
        count += 1
        if isinstance(row, BadRow):
            bad.add(place, row.reason)
            continue
        flags = row.get("category") if isinstance(row.get("category"), dict) else None
        try:
            question = text_of(row.get("prompt"))
            named = next((name for name in CATEGORIES if flags.get(name)), None) if flags else None
            category = named if flags is not None else text_of(row.get("category"))
        except ValueError as reason:
            bad.add(place, f"prompt or category {reason}")
            continue
        if question is None or (category is None and flags is None):
            bad.add(place, "has no prompt with a category; give a file of BeaverTails")
            continue
        if flags is not None and (row.get("is_safe", True) or category is None):
            continue
        if (question := question.strip()) not in seen:
            seen.add(question)
            yield "harmful", category, question, {}
    bad.end(count)


def _jsonl(path: Path, skip_bad: bool) -> Read:
    bad, count, kept = BadRows(path, skip_bad), 0, []
    for place, row in read_rows(path, table_kind(path, ".jsonl")):
        if row is None:
            continue
        count += 1
        if isinstance(row, BadRow):
            bad.add(place, row.reason)
            continue
        read = own_row(row)
        faults, fields = list(read.faults), read.fields
        named = {fault.split()[0] for fault in faults}
        if "question" not in fields and "question" not in named:
            faults.append("has no question; write one under question or prompt")
        if "label" not in fields and "label" not in named:
            faults.append(f"has no label; write one of {', '.join(LABELS)}")
        if "audio" in fields and (fault := clip_fault(fields["audio"], path.parent)):
            faults.append(fault)
        if not bad.add(place, *faults):
            kept.append(read)
            rest = {name: fields[name] for name in ("id", "pair_id") if name in fields}
            if "audio" in fields:
                rest["audio"] = str((path.parent / fields["audio"]).absolute())
            yield fields["label"], fields.get("category", "none"), fields["question"], rest
    bad.end(count)
    if said := taken_names(kept):
        say(f"{path}: {said}")


def _rows(
    path: Path, skip_bad: bool, *columns: str, fault: Callable[[dict], str | None] = lambda row: None
) -> Iterator[dict]:
    """Yields a table's rows, these columns as texts that are not empty; `fault` says what else is wrong."""
    bad, count = BadRows(path, skip_bad), 0
    for place, row in read_rows(path, table_kind(path, ".csv"), columns):
        if row is None:
            continue
        count += 1
        if isinstance(row, BadRow):
            bad.add(place, row.reason)
            continue
        faults, absent = [], [name for name in columns if name not in row]
        if absent:
            faults.append(f"has no {', '.join(absent)}")
        for name in set(columns) - set(absent):
            try:
                row[name] = (text_of(row[name]) or "").strip()
            except ValueError as reason:
                faults.append(f"{name} {reason}")
        if empty := [name for name in columns if row.get(name) == ""]:
            faults.append(f"{', '.join(empty)} is empty; mend or delete the row")
        if not faults and (other := fault(row)):
            faults.append(other)
        if not bad.add(place, *faults):
            yield row
    bad.end(count)


READERS: dict[str, Callable[[Path, bool], Read]] = {
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
