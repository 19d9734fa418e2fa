"""The place where clips are kept between runs."""

import os
import shutil
from pathlib import Path

from rrs_jax.files import atomic_path


def speech_folder(cache: str | Path | None = None) -> Path:
    """Returns `cache`, else `speech` in $RRS_JAX_CACHE, else in ~/.cache/rrs_jax."""
    if cache is None:
        cache = Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax") / "speech"
    return Path(cache).expanduser()


def place_clip(clip: Path, target: Path) -> None:
    """Puts a clip of the cache at `target`: a hard link, or a copy where the cache lies on another disk."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(clip, temporary)
        except OSError:
            shutil.copyfile(clip, temporary)
