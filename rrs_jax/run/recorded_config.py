"""The config that a run folder has recorded."""

from pathlib import Path

from rrs_jax.config.fields import FIELDS
from rrs_jax.config.run_config import RunConfig, default_config, flatten
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, reading


def recorded_config(folder: str | Path) -> RunConfig:
    """Returns the config of the run in `folder`, wherever it lies; its fields count as given.

    Fields that the program has no more are left out, and those that the folder lacks have their defaults.
    Raises UserError where the folder is no run.
    """
    file = Path(folder) / "config.json"
    if not str(folder) or not file.is_file():
        raise UserError(f"--config: {str(folder) or 'nothing'!r} is no run folder, which has a config.json.")
    with reading(file, "restore it, or give the config's own file"):
        recorded = flatten(read_json(file).get("config", {}))
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in recorded.items()
            if name in FIELDS
        }
        config = default_config()
        config.update_from_flattened_dict(values | {"run_dir": str(folder)})
    return config
