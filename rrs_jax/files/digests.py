"""Digests of what is in memory, and of files."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from rrs_jax.errors.kinds import UserError

PIECE = 2**20  # bytes of a file that are read at once


def content_hash(*parts: object) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of the parts; bytes, or a view of them, as they are, all
    else as JSON.

    A text that UTF-8 cannot hold has a hash too.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part
            if isinstance(part, bytes | memoryview)
            else json.dumps(part, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def file_digest(path: str | Path, places: Iterable[tuple[int, int]] | None = None) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of a file's size and bytes, or of those bytes of it that
    lie at `places` (start, length).

    Raises UserError where the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(size.to_bytes(8, "little"))
            for start, length in ((0, size),) if places is None else places:
                for at in range(start, min(start + length, size), PIECE):
                    digest.update(os.pread(file.fileno(), min(PIECE, start + length - at), at))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    return digest.hexdigest()[:16]
