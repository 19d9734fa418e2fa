"""Inputs of a run from outside its folder, known again by content: the model folder, the user's clips."""

import os
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.config.stages import STAGES, dependents_of
from rrs_jax.data.authors_questions import folder_hash
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash
from rrs_jax.progress import say
from rrs_jax.run.clips import users_clips_changed
from rrs_jax.run.marks import Marks, reads_model
from rrs_jax.weights.adapter import adapter_files_hash
from rrs_jax.weights.identity import Identity, changed_files, folder_identity, written_since
from rrs_jax.weights.safetensors_io import some_of


def file_hash(field: str, path: str) -> str:
    """Returns the hash of a manifest, of the authors' folder or of an adapter. Raises UserError where it
    cannot be read."""
    if field == "lora.start":
        return adapter_files_hash(path, field)
    try:
        return folder_hash(path) if Path(path).is_dir() else content_hash(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror}).") from error


def is_same_file(now: str, before: str) -> bool:
    """Returns True where two spellings lead to one file or folder."""
    return os.path.realpath(os.path.expanduser(now)) == os.path.realpath(os.path.expanduser(before))


def is_same_model(path: str, known: Identity | None) -> bool:
    """Returns True where a local folder holds the model of this identity."""
    folder = Path(os.path.expanduser(path))
    return bool(known) and folder.is_dir() and not changed_files(known, folder_identity(folder))


def model_is_used(marks: Marks) -> bool:
    """Returns True where a stage has left something that came of the model."""
    others = {"config.json", ".lock", ".done", "data", "wandb", "log.txt"}  # the last one is a sweep's
    return any(file.name not in others for file in marks.path.iterdir()) or bool(_done_with_model(marks))


def check_model(folder: Path, before: Identity, now: Identity, marks: Marks) -> None:
    """Raises UserError where the model folder is not what the run began with; `before` is empty where that
    was not recorded.

    Tells a large file that was written since, though what is read of it is the same.
    """
    if not before:
        say(
            f"model.path: an earlier version made {marks.path} and did not record what the model folder"
            f" holds; {folder} is taken for the same"
        )
    elif changed := changed_files(before, now):
        raise UserError(
            f"model.path: {folder} is not what the run in {marks.path} began with ({some_of(changed)}"
            f" changed), and {_came(_done_with_model(marks))} of the model before; restore the folder to go"
            " on, or give another --config.run_dir."
        )
    for name in written_since(before, now):
        say(
            f"model.path: {folder / name} was written since the run began; its size, its header and the bytes"
            " that are read of every tensor are the same, so it is taken for the same (a run begun with"
            " model.digest=whole compares all bytes)"
        )


def check_clips(marks: Marks) -> None:
    """Raises UserError where one of the user's clips is not what the run began with. One that is missing is
    told, and left to the stage that reads it."""
    changed, missing = users_clips_changed(marks.path, marks.read("data").get("clips", {}))
    if missing:
        more = f" and {len(missing) - 1} more clips are" if len(missing) > 1 else " is"
        say(f"data: {missing[0]}{more} missing; what is done in {marks.path} stays done")
    if changed:
        more = f" and {len(changed) - 1} more clips are" if len(changed) > 1 else " is"
        stale = [name for name in dependents_of("data") if marks.read(name)]
        raise UserError(
            f"data: {changed[0]}{more} not what the run in {marks.path} began with, and {_came(stale)} of the"
            " clips before; restore them to go on, or give another --config.run_dir."
        )


def _done_with_model(marks: Marks) -> list[str]:
    return [name for name in STAGES if reads_model(name, marks.values) and marks.read(name)]


def _came(stages: Sequence[str]) -> str:
    return f"{', '.join(stages)} came" if stages else "what it has so far came"
