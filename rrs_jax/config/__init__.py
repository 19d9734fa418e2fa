"""The config of a run. A config file imports from here; `python -m rrs_jax.config` prints every field."""

from rrs_jax.config.checks import config_error, unknown_field, validate
from rrs_jax.config.fields import FIELDS, LAYOUTS, LINEARS
from rrs_jax.config.presets import choose_variant, resolve
from rrs_jax.config.run_config import RunConfig, default_config, flatten, given_fields

__all__ = [
    "FIELDS",
    "LAYOUTS",
    "LINEARS",
    "RunConfig",
    "choose_variant",
    "config_error",
    "default_config",
    "flatten",
    "given_fields",
    "resolve",
    "unknown_field",
    "validate",
]
