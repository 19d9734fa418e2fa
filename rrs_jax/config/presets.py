"""Presets: strategies that set fields, and the variants behind the colon of `--config=FILE:VARIANT`."""

from collections.abc import Callable

from ml_collections import ConfigDict

from rrs_jax.config.fields import FIELDS, default_config, flatten
from rrs_jax.config.strategy_table import PLUS
from rrs_jax.errors import UserError


def with_preset(config: ConfigDict) -> ConfigDict:
    """The config of a run. For `rrs_plus`: fields of `PLUS` that have their default take the preset's
    value."""
    if config.strategy != "rrs_plus":
        return config
    values = flatten(config)
    values |= {name: value for name, value in PLUS.items() if values[name] == FIELDS[name].default}
    preset = default_config()
    preset.update_from_flattened_dict(values)
    return preset


def choose_variant(config: ConfigDict, variant: str, **variants: Callable[[ConfigDict], None]) -> None:
    """Applies what stands behind the colon of `--config=FILE:VARIANT`. Raises UserError for an unknown
    one."""
    if variant and variant not in variants:
        raise UserError(f"--config: {variant!r} is no variant of this file; it has {', '.join(variants)}.")
    if variant:
        variants[variant](config)
