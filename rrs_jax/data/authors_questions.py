"""The authors' training questions, read from a clone of their repository `YangHao97/RRS`.

    FOLDER/data/harmful.json, benign.json   JSON lists of {"prompt", "category", "path"}: row i of benign.json
                                            is the rewrite of row i of harmful.json, its path is B_PATH
    FOLDER/BeaverTails_audio/PATH.wav       the recordings, which are not in the repository itself

A question may stand in several rows, under several categories and paths, and a rewrite's path may bear two
different texts. Rows are therefore told apart by their number, and questions by their words.
"""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import soundfile

from rrs_jax.data.questions import tidy, words
from rrs_jax.data.values import numbers_as_text
from rrs_jax.data.voices import MAX_SECONDS
from rrs_jax.errors import UserError
from rrs_jax.files import JSONFault, content_hash, parse_json

FILES = {"harmful": "harmful.json", "benign": "benign.json"}
AUDIO = "BeaverTails_audio"
FIELDS = ("prompt", "category", "path")
MAX_LISTED = 50


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording of `seconds`."""

    path: Path
    seconds: float


@dataclasses.dataclass(frozen=True)
class AuthorsPair:
    """One row of both files.

    Attributes:
      row: its number, from 1.
      path: of the harmful question; the rewrite's has `B_` before it.
      questions: the texts by label, "harmful" and "benign", with plain quotes and single spaces.
      clips: the recordings by label, None where there is none, or none whose words are known.
    """

    row: int
    category: str
    path: str
    questions: dict[str, str]
    clips: dict[str, Clip | None]


@dataclasses.dataclass(frozen=True)
class AuthorsQuestions:
    """All pairs of a folder, in its order; `counts` of what it has, `remarks` about what is odd in it."""

    pairs: tuple[AuthorsPair, ...]
    counts: dict[str, int]
    remarks: tuple[str, ...]


def read_authors(folder: str | Path) -> AuthorsQuestions:
    """Reads a clone of the authors' repository, or a folder that holds the two JSON files themselves.

    Raises UserError that names the file, the row, what is wrong and what to do, for everything that is wrong.
    """
    folder = Path(folder)
    files = _question_files(folder)
    remarks: list[str] = []
    rows = {label: _read_rows(path, remarks) for label, path in files.items()}
    _check_rows(files, rows)
    named = [{row["path"] for row in members} for members in rows.values()]
    clips, faults = _read_clips(folder / AUDIO, set.union(*named))
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:MAX_LISTED])
        raise UserError(f"{folder / AUDIO}: {len(faults)} recordings cannot be used:\n{listed}")
    ambiguous = _ambiguous([row for members in rows.values() for row in members])
    pairs = []
    for number, (harmful, benign) in enumerate(zip(*rows.values(), strict=True), start=1):
        both = {"harmful": harmful, "benign": benign}
        pairs.append(AuthorsPair(
            row=number,
            category=harmful["category"].strip(),
            path=harmful["path"],
            questions={label: tidy(row["prompt"]) for label, row in both.items()},
            clips={
                label: None if row["path"] in ambiguous else clips.get(row["path"])
                for label, row in both.items()
            },
        ))  # fmt: skip
    counts = {
        "pairs": len(pairs),
        "distinct harmful questions": len({row["prompt"] for row in rows["harmful"]}),
        "distinct rewrites": len({row["prompt"] for row in rows["benign"]}),
        "paths": len(named[0]),
        "recordings": len(clips),
    }
    remarks += _remarks(pairs, ambiguous & set(clips))
    return AuthorsQuestions(tuple(pairs), counts, tuple(remarks))


def folder_hash(folder: str | Path) -> str:
    """Hash of the question files and of which recordings are there, by which a run knows its input again.

    Raises UserError for a folder without question files, OSError where one of them cannot be read.
    """
    folder = Path(folder)
    recordings = sorted(path.name for path in (folder / AUDIO).glob("*.wav"))
    return content_hash(*(path.read_bytes() for path in _question_files(folder).values()), recordings)


def manifest_rows(pairs: Sequence[AuthorsPair]) -> list[dict]:
    """Rows of a manifest, harmful question and rewrite by turns; `audio` is the recording's absolute path, or
    None where the question has to be spoken."""
    rows = []
    for pair in pairs:
        name = f"authors-{pair.row:03d}"
        for label, prefix in (("harmful", ""), ("benign", "B_")):
            clip = pair.clips[label]
            rows.append({
                "id": f"{name}-{label}",
                "pair_id": name,
                "label": label,
                "category": pair.category,
                "question": pair.questions[label],
                "response": None,
                "audio": str(clip.path.absolute()) if clip else None,
                "voice": None,
                "seconds": round(clip.seconds, 3) if clip else None,
                "path": prefix + pair.path,
            })  # fmt: skip
    return rows


def _question_files(folder: Path) -> dict[str, Path]:
    for place in (folder / "data", folder):
        if any((place / name).is_file() for name in FILES.values()):
            return {label: place / name for label, name in FILES.items()}
    raise UserError(
        f"{folder}: has no data/harmful.json and data/benign.json; give a clone of the authors' repository,"
        " or the path of a manifest (JSON lines)."
    )


def _read_rows(path: Path, remarks: list[str]) -> list:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a whole clone of the authors' repository."
        ) from error
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as unreadable:
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise UserError(f"{path}: is not UTF-8 text ({unreadable}); save it as UTF-8.") from unreadable
        remarks.append(f"{path.name} is not UTF-8 and is read as Windows-1252")
    try:
        rows = parse_json(text, halves=True)
    except JSONFault as error:
        raise UserError(
            f"{path}, line {error.line or 1}: is not valid JSON ({error}); fetch the file again."
        ) from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: holds no list of questions; fetch the file again.")
    return [numbers_as_text(row, *FIELDS) if isinstance(row, dict) else row for row in rows]


def _check_rows(files: dict[str, Path], rows: dict[str, list]) -> None:
    """Raises UserError that lists every row which is no question, and every two rows that are no pair."""
    sizes = {label: len(members) for label, members in rows.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"{files['benign']}: has {sizes['benign']} rows and {FILES['harmful']} has {sizes['harmful']},"
            " but row i of one belongs to row i of the other; fetch both files again."
        )
    faults = [
        f"{FILES[label]}, row {number}: {fault}"
        for label, members in rows.items()
        for number, row in enumerate(members, start=1)
        if (fault := _row_fault(row))
    ]
    if not faults:
        for number, (harmful, benign) in enumerate(zip(*rows.values(), strict=True), start=1):
            if benign["path"] != f"B_{harmful['path']}":
                faults.append(
                    f"row {number}: path {benign['path']} is not that of the rewrite, B_{harmful['path']}"
                )
            elif benign["category"] != harmful["category"]:
                faults.append(
                    f"row {number}: {benign['path']} is of category {benign['category']!r}, its harmful"
                    f" question of {harmful['category']!r}"
                )
    if faults:
        more = [f"  and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
        listed = "\n".join([f"  {fault}" for fault in faults[:MAX_LISTED]] + more)
        raise UserError(f"{files['harmful'].parent}: {len(faults)} rows to mend or delete:\n{listed}")


def _row_fault(row: object) -> str | None:
    if not isinstance(row, dict):
        return "is no JSON object"
    for field in FIELDS:
        value = row.get(field)
        if not isinstance(value, str) or not tidy(value):
            return f"{field} is {json.dumps(value)[:40]}, no text"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"{field} holds half a character ({json.dumps(value)[:40]})"
    if not re.fullmatch(r"\w[\w.-]*", row["path"]):
        return f"path {row['path']!r} is no name of a recording such as audio_01944"
    return None


def _read_clips(folder: Path, names: set[str]) -> tuple[dict[str, Clip], list[str]]:
    """The recordings that are there, by path, and what is wrong with others."""
    clips, faults = {}, []
    for name in sorted(names):
        path = folder / f"{name}.wav"
        if not path.exists():
            continue
        try:
            seconds = soundfile.info(path).duration
        except (OSError, soundfile.LibsndfileError):
            faults.append(
                f"{path.name} is not readable as audio; fetch it again, or delete it: it is then spoken"
            )
            continue
        if not 0 < seconds <= MAX_SECONDS:
            faults.append(
                f"{path.name} is {seconds:.1f} s long and the models hear {MAX_SECONDS:g} s; cut or delete it"
            )
            continue
        clips[name] = Clip(path, seconds)
    return clips, faults


def _ambiguous(rows: Sequence[dict]) -> set[str]:
    """Paths under which questions of different words stand: which of them is recorded is not known."""
    spoken = defaultdict(set)
    for row in rows:
        spoken[row["path"]].add(tuple(words(row["prompt"])))
    return {path for path, texts in spoken.items() if len(texts) > 1}


def _remarks(pairs: Sequence[AuthorsPair], ambiguous: set[str]) -> list[str]:
    remarks = []
    if ambiguous:
        remarks.append(
            f"the recordings {', '.join(sorted(ambiguous))} stand at two different questions and are not used"
        )
    same = [pair.row for pair in pairs if words(pair.questions["harmful"]) == words(pair.questions["benign"])]
    if same:
        remarks.append(
            f"the question and its rewrite have the same words in row {', '.join(map(str, same))}; it stays,"
            " as the authors trained on it"
        )
    return remarks
