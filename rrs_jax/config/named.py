"""A config by its name, for programs that call the package."""

import runpy
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config.checks import config_error, unknown_field
from rrs_jax.config.fields import FIELDS
from rrs_jax.config.shipped import config_file, shipped
from rrs_jax.errors import UserError


def load_config(name: str, fields: Mapping[str, object] | None = None) -> ConfigDict:
    """Returns a shipped config or that of a file, with a variant behind a colon, and some fields set.

    name: as for `--config`, such as "mini_rrs:smoke".
    fields: values by dotted names, such as {"train.epochs": 3}.
    Raises UserError for a name that is no config, and naming every field that is wrong.
    """
    path, _, variant = name.partition(":")
    file = Path(path) if Path(path).is_file() else config_file(path)
    if file is None:
        names = sorted(file.stem for file in shipped("configs").glob("*.py"))
        raise UserError(f"config: {path!r} is no file; the package has {', '.join(names)}.")
    config, given = runpy.run_path(str(file))["get_config"](variant), dict(fields or {})
    problems = [unknown_field(field) for field in given if field not in FIELDS]
    problems += [
        problem
        for field, value in given.items()
        if field in FIELDS and (problem := FIELDS[field].problem(value))
    ]
    if problems:
        raise config_error(problems)
    config.update_from_flattened_dict(given)
    return config
