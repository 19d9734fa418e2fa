"""The config of a run. A config file imports from here; `python -m rrs_jax.config` prints every field."""

from rrs_jax.config.checks import config_error, unknown_field, validate
from rrs_jax.config.fields import FIELDS, LAYOUTS, LINEARS, MINI, default_config, flatten
from rrs_jax.config.presets import choose_variant, with_preset

__all__ = [
    "FIELDS",
    "LAYOUTS",
    "LINEARS",
    "MINI",
    "choose_variant",
    "config_error",
    "default_config",
    "flatten",
    "unknown_field",
    "validate",
    "with_preset",
]
