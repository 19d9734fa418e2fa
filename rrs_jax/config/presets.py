"""Presets: fields that a strategy sets unless they were given, and the variants of a config file."""

import copy
from collections.abc import Callable

from ml_collections import ConfigDict

from rrs_jax.config.fields import FIELDS
from rrs_jax.config.run_config import flatten, given_fields, mark_all_given
from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.errors import UserError


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy of `config` in which its strategy's preset has set the fields that were not given.

    `~` in paths is the home folder.

    A given value wins, also where it equals the field's default. Every field of the result counts as given,
    so that resolving again changes nothing. `launch.py` and sweeps resolve what they read;
    `rrs_jax.run.pipeline.run` resolves what it is called with.
    """
    entry = STRATEGY_TABLE.get(config.get("strategy"))  # a wrong strategy is for `validate` to tell
    resolved, given = copy.deepcopy(config), given_fields(config)
    if entry is not None:
        preset = {name: value for name, value in entry.preset.items() if name not in given}
        resolved.update_from_flattened_dict(preset)
    for name, value in flatten(resolved).items():
        if name in FIELDS and (with_home := FIELDS[name].kind.with_home) and with_home(value) != value:
            resolved.update_from_flattened_dict({name: with_home(value)})
    mark_all_given(resolved)
    return resolved


def choose_variant(config: ConfigDict, variant: str, **variants: Callable[[ConfigDict], None]) -> None:
    """Applies the variant behind the colon of `--config=FILE:VARIANT`; an empty name applies none.

    Raises UserError for an unknown variant.
    """
    if variant and variant not in variants:
        raise UserError(f"--config: {variant!r} is no variant of this file; it has {', '.join(variants)}.")
    if variant:
        variants[variant](config)
