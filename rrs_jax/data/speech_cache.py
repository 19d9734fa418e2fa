"""The place where clips are kept between runs."""

import os
import shutil
from pathlib import Path

from rrs_jax.files import atomic_path, cache_folder


def speech_folder(cache: str | Path | None = None) -> Path:
    """Returns `cache`, else `speech` in $RRS_JAX_CACHE, else in ~/.cache/rrs_jax."""
    return cache_folder() / "speech" if cache is None else Path(cache).expanduser()


def place_clip(clip: Path, target: Path) -> None:
    """Puts a clip of the cache at `target`: a hard link, or a copy where the cache lies on another disk."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(clip, temporary)
        except OSError:
            shutil.copyfile(clip, temporary)
