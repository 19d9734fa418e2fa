"""The manifest: one sample a line, JSON.

    {"id": "train-animal-01-harmful", "pair_id": "train-animal-01", "label": "harmful",
     "category": "animal_abuse", "question": "...", "response": null,
     "audio": "audio/train-animal-01-harmful.flac", "voice": "hibari:heart:1:0", "seconds": 2.5}

`audio` is relative to the manifest's folder. `label`, `question` and, for a model that listens, `audio` are
needed. Where they are left out, `id` is the line's number, `pair_id` is the id, `category` "none", and
`response`, `voice`, `seconds` null. `style`, such as "imperative", may be left out; an evaluation
also gives rates by it.

The rows of other programs and data sets are read too, with their own names of these fields
(`rrs_jax.data.rows`), and files of JSON, CSV and Parquet (`rrs_jax.data.tables`).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.data.bad_rows import BadRow, BadRows
from rrs_jax.data.rows import LABELS, OwnRow, clip_fault, own_row, plain, taken_names
from rrs_jax.data.tables import read_rows, table_kind
from rrs_jax.errors import UserError
from rrs_jax.progress import say

__all__ = ["FIELDS", "LABELS", "audio_paths", "load_manifest"]
NO_AUDIO = "audio is missing"
FIELDS = ("id", "pair_id", "label", "category", "question", "response", "audio", "voice", "seconds")


def load_manifest(path: str | Path, need_audio: bool = True, skip_bad: bool = False) -> list[dict]:
    """Reads the rows with all of their fields, in the file's order; fields of the user's own are kept.

    need_audio: every row must name a file that exists (its samples are checked by
    `inputs.audio.check_audios`).

    What is read under other names, and left out, is told. Raises one UserError that lists everything wrong
    with its line; `skip_bad` leaves such rows out and tells them.
    """
    path = Path(path).expanduser()
    numbered = list(read_rows(path, table_kind(path, ".jsonl")))
    while numbered and numbered[-1][1] is None:
        numbered.pop()
    if not numbered:
        raise UserError(f"{path}: is empty; write one JSON object a line with {', '.join(FIELDS)}.")
    kept: list[tuple[dict, OwnRow]] = []
    bad, first_place, unnamed, dropped = BadRows(path, skip_bad), {}, 0, Counter()
    unheard = 0  # rows without a clip that are whole otherwise
    for place, row in numbered:
        if row is None or isinstance(row, BadRow):
            bad.add(place, "is empty" if row is None else row.reason)
            continue
        read = own_row(row)
        fields, names = plain(read.fields)
        faults = _faults(fields, read.faults, path.parent, need_audio)
        unheard += faults == [NO_AUDIO]
        name = fields.setdefault("id", place.replace(" ", "-"))
        if name in first_place:
            faults.append(f"id {name!r} is that of {first_place[name]} too")
        first_place.setdefault(name, place)
        if not bad.add(place, *faults):
            unnamed += "id" not in read.fields
            dropped.update(names)
            kept.append((_completed(fields), read))
    _check_some_heard(path, unheard, len(numbered))
    bad.end(len(numbered))
    if not kept:
        raise UserError(f"{path}: holds no row that can be used; mend it.")
    _tell(path, [read for _, read in kept], unnamed, dropped)
    return [row for row, _ in kept]


def audio_paths(manifest: str | Path, rows: Sequence[dict]) -> list[Path]:
    """Returns the paths of the rows' clips."""
    return [Path(manifest).parent / row["audio"] for row in rows]


def _check_some_heard(path: Path, unheard: int, number: int) -> None:
    """Raises one UserError in place of a line for each row, where all that the rows lack are their clips."""
    if unheard == number:
        raise UserError(
            f"{path}: no question has a clip in `audio`; add its path to each row, or give the manifest of a"
            " run, whose data stage speaks every question (RUN/data/manifest.jsonl)."
        )


def _faults(fields: dict, faults: list[str], folder: Path, need_audio: bool) -> list[str]:
    """Faults of a row, with what is missing in it."""
    needed = ("label", "question", *(("audio",) if need_audio else ()))
    named = {fault.split()[0].rstrip(",") for fault in faults}
    missing = [f"{name} is missing" for name in needed if name not in fields and name not in named]
    if need_audio and "audio" in fields and (fault := clip_fault(fields["audio"], folder)):
        missing.append(fault)
    return missing + faults


def _completed(fields: dict) -> dict:
    return dict.fromkeys(FIELDS) | {"pair_id": fields["id"], "category": "none"} | fields


def _tell(path: Path, rows: list[OwnRow], unnamed: int, dropped: Counter) -> None:
    said = [taken_names(rows)]
    said += [f"{unnamed} of {len(rows)} rows have no id and get their line's number"] if unnamed else []
    said += [
        f"{name} is left out of {count} rows, since JSON cannot hold it" for name, count in dropped.items()
    ]
    for line in filter(None, said):
        say(f"{path}: {line}")
