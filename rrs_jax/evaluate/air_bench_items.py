"""The items of AIR-Bench chat: questions, reference answers and clips, as they are published."""

from collections.abc import Sequence
from pathlib import Path

import soundfile

from rrs_jax.data.clips import is_file
from rrs_jax.data.values import is_missing, text_of
from rrs_jax.errors import UserError
from rrs_jax.evaluate.air_bench_scores import TASKS
from rrs_jax.files import JSONFault, atomic_path, content_hash, half_character_fault, parse_json, read_text
from rrs_jax.inputs.audio_files import AudioFault, read_samples

META = "Chat_meta.json"
NEEDED = ("path", "question", "answer_gt", "task_name", "dataset_name", "meta_info", "uniq_id")
TEXTS = ("path", "question", "task_name", "dataset_name", "uniq_id")  # of them


def read_meta(root: str | Path) -> list[dict]:
    """Reads the items of `Chat_meta.json` and adds "id" and "audio" (Path) to each.

    Raises one UserError that lists items without a field, of an unknown task, or without their audio.
    """
    path = Path(root) / META
    try:
        entries = parse_json(read_text(path), halves=True)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; give the folder of AIR-Bench's chat data.") from error
    except JSONFault as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give the folder of AIR-Bench's chat data."
        ) from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: is no JSON list of items.")
    items: dict[str, dict] = {}
    faults = []
    for number, entry in enumerate(entries, start=1):
        try:
            item = _item(entry, path.parent)
        except ValueError as fault:
            faults.append(f"item {number} {fault}")
            continue
        if item["id"] in items:
            faults.append(f"item {number} has the uniq_id of another one in {item['task_name']}")
        items[item["id"]] = item
    if faults or not items:
        shown = "\n  ".join(faults[:20]) or "it holds no item"
        raise UserError(f"{path}: {len(faults)} faults:\n  {shown}")
    return list(items.values())


def _item(entry: object, root: Path) -> dict:
    """Returns an entry with "id" and "audio". Raises ValueError that says what is wrong with it."""
    missing = [key for key in NEEDED if not isinstance(entry, dict) or is_missing(entry.get(key))]
    if missing:
        raise ValueError(f"has no {', '.join(missing)}")
    if fault := half_character_fault(entry):
        raise ValueError(fault)
    try:
        entry = entry | {key: text_of(entry[key]) for key in TEXTS}
    except ValueError as reason:
        raise ValueError(f"has one of {', '.join(TEXTS)} that {reason}") from reason
    task = entry["task_name"]
    if task not in TASKS:
        raise ValueError(f"is of an unknown task {task}")
    place = Path(f"{task}_{entry['dataset_name']}") / entry["path"]
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"has a clip {place}, which lies outside of the data set")
    if not is_file(root / place):
        raise ValueError(f"has no clip: {root / place} does not exist")
    return entry | {"id": f"{task}-{entry['uniq_id']}", "audio": root / place}


def cut_clips(items: Sequence[dict], folder: Path, max_seconds: float) -> tuple[dict[str, Path], int]:
    """Returns each item's clip, cut to `max_seconds`, by id, and how many clips were cut."""
    clips, cut, faults = {}, 0, []
    for item in items:
        try:
            samples, rate = read_samples(item["audio"])
        except AudioFault as fault:
            faults.append(f"{item['audio']} {fault}")
            continue
        long = len(samples) > max_seconds * rate
        target = folder / f"{content_hash(str(item['audio']))}.wav"
        if long and not target.is_file():
            with atomic_path(target) as temporary:
                heard = samples[: int(max_seconds * rate)]
                soundfile.write(temporary, heard, rate, format="WAV", subtype="PCM_16")
        clips[item["id"]] = target if long else item["audio"]
        cut += long
    if faults:
        raise UserError(f"AIR-Bench: {len(faults)} clips cannot be read:\n  " + "\n  ".join(faults[:20]))
    return clips, cut
