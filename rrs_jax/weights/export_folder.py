"""The folder of an export, which is the old one or the whole new one, whenever the export ends."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.files import reason_of, write_json

MARKER = "rrs_export.json"  # says that a folder is ours, so that exporting again may replace it


@contextlib.contextmanager
def new_folder(out: Path, base_folder: Path, size: int, record: dict) -> Iterator[Path]:
    """Yields a folder beside `out` that takes its name in the end: `out` is the old one or the whole new one.

    Args:
      size: bytes that will be written, which the disk must have free.
      record: what the marker file says.
    """
    out, base = out.resolve(), base_folder.resolve()
    if out == base or base in out.parents or out in base.parents:
        raise UserError(
            f"{out}: the export would overwrite or lie in the base model's folder {base}; choose another."
        )
    ours_or_empty = out.is_dir() and ((out / MARKER).is_file() or not any(out.iterdir()))
    if out.exists() and not ours_or_empty:
        raise UserError(f"{out}: exists and was not made by an export; choose another folder or remove it.")
    partial, old = _beside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)  # of an export that was killed
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise UserError(
                f"{out}: the export takes {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
                "free space or choose another folder."
            )
        partial.mkdir()
        yield partial
        write_json(partial / MARKER, {"made_by": "rrs_jax", **record})
        if out.exists():
            _remove(old)
            out.rename(old)
        partial.rename(out)
        _remove(old)
    except OSError as error:
        raise UserError(
            f"{out}: the export failed ({reason_of(error)}); free space, check its rights or choose another"
            " folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(*folders: Path) -> None:
    """Removes what killed exports into these folders have left beside them."""
    for folder in folders:
        for left in _beside(folder):
            _remove(left)


def _beside(out: Path) -> tuple[Path, Path]:
    """Returns the names of an export's folder before it is whole, and of the one that it replaces."""
    return out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
