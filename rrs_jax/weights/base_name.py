"""The name OWNER/NAME under which a model is published, as far as its path or folder says it."""

import re
from pathlib import Path

from rrs_jax.files import read_json
from rrs_jax.weights.hub import is_hub_id

HUB_NAME = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")  # a folder of the hub's cache


def published_name(path: str, folder: Path) -> tuple[str | None, str]:
    """Returns the name, None where there is none, and what says so.

    path: the config's `model.path`; folder: where it lies.
    """
    if is_hub_id(path):
        return path, "model.path"
    if folder.parent.name == "snapshots" and (found := CACHED.fullmatch(folder.parent.parent.name)):
        return f"{found['owner']}/{found['name']}", "its place in the hub's cache"
    recorded = read_json(folder / "config.json").get("_name_or_path") or ""
    if re.fullmatch(HUB_NAME, recorded) and not Path(recorded).exists():
        return recorded, "_name_or_path in config.json"
    return None, "nothing in the model's folder"
