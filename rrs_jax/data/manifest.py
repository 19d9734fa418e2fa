"""The manifest: one sample a line, JSON.

    {"id": "train-animal-01-harmful", "pair_id": "train-animal-01", "label": "harmful",
     "category": "animal_abuse", "question": "...", "response": null,
     "audio": "audio/train-animal-01-harmful.flac", "voice": "hibari:heart:1:0", "seconds": 2.5}

`audio` is relative to the manifest's folder. `id`, `label`, `question` and, for a model that listens, `audio`
are needed. Where they are left out, `pair_id` is the id, `category` "none", and `response`, `voice`,
`seconds` null.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.errors import UserError

LABELS = ("harmful", "benign", "borderline")
TEXTS = ("id", "pair_id", "label", "category", "question")  # never null
TEXTS_OR_NULL = ("response", "audio", "voice")
FIELDS = (*TEXTS, *TEXTS_OR_NULL, "seconds")
MAX_LISTED = 50


def load_manifest(path: str | Path, need_audio: bool = True) -> list[dict]:
    """Reads the rows with all of their fields, in the file's order; fields of the user's own are kept.

    need_audio: every row must name a file that exists (its samples are checked by
    `inputs.audio.check_audios`).

    Raises one UserError that lists everything wrong with its line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a manifest (JSON lines)."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from error
    if lines == [""]:
        raise UserError(f"{path}: is empty; write one JSON object a line with {', '.join(FIELDS)}.")
    rows, faults, first_line = [], [], {}
    for number, line in enumerate(lines, start=1):
        row, reasons = _read_row(line, path.parent, need_audio)
        if isinstance(name := row.get("id"), str) and name in first_line:
            reasons.append(f"id {name!r} is that of line {first_line[name]} too")
        elif isinstance(name, str):
            first_line[name] = number
        faults += [f"line {number}: {reason}" for reason in reasons]
        rows.append(row)
    if faults:
        more = [f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
        listed = "\n".join([f"  {fault}" for fault in faults[:MAX_LISTED]] + more)
        raise UserError(f"{path}: {len(faults)} faults to mend:\n{listed}")
    return rows


def audio_paths(manifest: str | Path, rows: Sequence[dict]) -> list[Path]:
    """Returns the paths of the rows' clips."""
    return [Path(manifest).parent / row["audio"] for row in rows]


def _read_row(line: str, folder: Path, need_audio: bool) -> tuple[dict, list[str]]:
    """Returns the row, completed, and what is wrong with it."""
    if not line.strip():
        return {}, ["is empty"]
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, [f"is not JSON ({error.msg})"]
    if not isinstance(given, dict):
        return {}, ["holds no JSON object"]
    row = dict.fromkeys(FIELDS) | {"pair_id": given.get("id"), "category": "none"} | given
    faults = []
    needed = ("id", "label", "question", *(("audio",) if need_audio else ()))
    for field in needed:
        if given.get(field) is None:
            faults.append(f"{field} is missing")
    for field in (*TEXTS, *TEXTS_OR_NULL):
        value = given.get(field)
        if value is None and (field not in given or field in TEXTS_OR_NULL or field in needed):
            continue
        if not isinstance(value, str) or not value.strip():
            faults.append(f"{field} is {json.dumps(value)[:40]}, no text")
    if isinstance(row.get("label"), str) and row["label"].strip() and row["label"] not in LABELS:
        faults.append(f"label {row['label']!r} is none of {', '.join(LABELS)}")
    if (
        need_audio
        and isinstance(row["audio"], str)
        and row["audio"].strip()
        and not (folder / row["audio"]).is_file()
    ):
        faults.append(f"audio file {folder / row['audio']} does not exist")
    if not _is_length(row["seconds"]):
        faults.append(f"seconds is {json.dumps(row['seconds'])[:40]}, no positive number")
    return row, faults


def _is_length(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
