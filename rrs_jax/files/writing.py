"""Files that appear under their names when they are whole, locks, and names of files."""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from rrs_jax.distributed import processes
from rrs_jax.errors.kinds import UserError
from rrs_jax.files.digests import content_hash

UNFINISHED = ".tmp"  # the end of a hidden file's name while it is written
LONGEST_NAME = 100  # bytes, so that suffixes and temporary names find room in the 255 that file systems have


def cache_folder() -> Path:
    """Returns the folder of what runs share: $RRS_JAX_CACHE, else ~/.cache/rrs_jax."""
    return Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax").expanduser()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes `path`'s name, on failure it is removed.

    A reader therefore sees the old file or the whole new one, never a part. Raises UserError where the
    folder cannot be written or the disk is full.
    """
    path = Path(path)
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        os.close(handle)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); check the folder and its rights."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        make_ordinary(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: writing failed ({error.strerror}); free space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path, older_than: float = 0.0) -> None:
    """Removes files that a kill has left half written below a folder, if they are older than so many
    seconds."""
    for file in folder.rglob(f".*{UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()


def make_ordinary(path: Path) -> None:
    """Gives a file that was made as a private one the rights that an ordinary new file has."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def file_lock(path: str | Path, *, seconds: float = math.inf) -> Iterator[None]:
    """Holds the lock file `path`, so that processes do one after another what they do within.

    The lock goes with the process, however it ends. Waits at most `seconds` for another process, 0 not to
    wait at all, and raises `filelock.Timeout` where that one still holds it. On a file system without locks
    nothing is held, and processes may do the same work side by side.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # what fails below is the lock, not the place
    lock = filelock.FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire(timeout=seconds if math.isfinite(seconds) else -1)
        is_held = True
    except filelock.Timeout:
        raise
    except OSError:
        is_held = False
    try:
        yield
    finally:
        if is_held:
            lock.release()


def safe_name(text: str) -> str:
    """Returns a text of others as the name of one file: itself where it is one, else changed and with a hash.

    The name has letters, digits, "-", "_", ".", "+", "=", "@", "," and blanks within, and does not begin with
    a dot.
    """
    kept = "".join(c if c.isalnum() or c in "-_.+=@, " else "_" for c in text).strip(" ")
    kept = "_" + kept[1:] if kept.startswith(".") else kept
    if kept == text and kept and len(kept.encode()) <= LONGEST_NAME:
        return kept
    beginning = kept.encode()[: LONGEST_NAME - 20].decode("utf-8", "ignore").strip(". ")
    return f"{beginning or '_'}-{content_hash(text)[:8]}"


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Writes `content` (text as UTF-8) so that `path` is never half written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
