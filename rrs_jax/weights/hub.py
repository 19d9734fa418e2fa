"""Models of the Hugging Face hub: their small files at once, their weights when they are needed."""

import fnmatch
import shutil
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.progress import say
from rrs_jax.weights.named_models import is_named
from rrs_jax.weights.safetensors_io import INDEX, WHOLE, shard_names

SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.tiktoken", "*.py")
# What a hub folder is fetched for: the weights, and all that the merged export carries along with them.
HUB_FILES = (*SMALL_FILES, "*.safetensors", "*.npz", "spk_dict.pt")


def is_hub_id(path: str) -> bool:
    """Returns True for OWNER/NAME where no folder has that name."""
    return (
        path.count("/") == 1
        and not path.startswith((".", "/", "~"))
        and not is_named(path)
        and not Path(path).is_dir()
    )


def fetch(path: str, patterns: Sequence[str] = HUB_FILES, field: str = "model.path") -> Path:
    """Returns the folder of a hub id with the files that match, fetched where they are not in the cache.

    Raises UserError, which begins with `field`, where they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except Exception as error:  # huggingface_hub raises a dozen kinds, all of which mean: not to be had
        raise _not_to_be_had(path, error, field) from error


def small_files(path: str) -> Path:
    """Returns the folder of a hub id with its configuration and tokenizer, but not yet its weights."""
    return fetch(path, SMALL_FILES)


def check_download(path: str) -> None:
    """Says how much of a hub id's weights will be fetched.

    Raises UserError where the hub cannot be asked or the cache's disk lacks the room.
    """
    folder = small_files(path)
    if _has_weights(folder):
        return
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(path, revision=folder.name, files_metadata=True).siblings or ()
    except Exception as error:  # as above
        raise _not_to_be_had(path, error) from error
    wanted = [
        file
        for file in files
        if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in HUB_FILES)
        and not (folder / file.rfilename).exists()
    ]
    size, free = sum(file.size or 0 for file in wanted), shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"model.path: {path} takes {size / 1e9:.1f} GB more and the disk of {folder.parent.parent} has"
            f" {free / 1e9:.1f} GB free; free some or set HF_HOME to a folder on another disk."
        )
    say(f"{path}: {size / 1e9:.1f} GB will be fetched from the hub")


def _has_weights(folder: Path) -> bool:
    index = folder / INDEX
    if index.is_file() and not (folder / WHOLE).is_file():
        return all((folder / name).is_file() for name in shard_names(index))
    return any(folder.glob("*.safetensors"))


def _not_to_be_had(path: str, error: Exception, field: str = "model.path") -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{field}: {path} is no folder and could not be fetched from the hub ({reason}).")
