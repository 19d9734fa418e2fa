"""The place where clips are kept between runs."""

import os
from pathlib import Path


def speech_folder(cache: str | Path | None = None) -> Path:
    """Returns `cache`, else `speech` in $RRS_JAX_CACHE, else in ~/.cache/rrs_jax."""
    if cache is None:
        cache = Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax") / "speech"
    return Path(cache).expanduser()
