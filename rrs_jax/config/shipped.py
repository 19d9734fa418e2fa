"""Folders that lie beside the package in the repository and inside it once it is installed."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def shipped(folder: str) -> Path:
    """Returns the folder of that name: the installed package's own, else the repository's."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def config_file(name: str, folder: str = "configs") -> Path | None:
    """Returns the file of a shipped config, or of a sweep in `configs/sweeps`; None where there is none.

    `name`: the file's name, with or without `.py`, or its path from the repository: `mini_rrs`,
    `configs/mini_rrs.py`.
    """
    written = Path(name)
    if written.parent not in (Path("."), Path(folder)):
        return None
    file = shipped("configs") / Path(folder).relative_to("configs") / f"{written.name.removesuffix('.py')}.py"
    return file if file.is_file() else None
