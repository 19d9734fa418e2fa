"""The adapter from which training goes on (`lora.start`), and whether the run's settings are its own."""

import math
import re
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.errors import UserError
from rrs_jax.models.architectures import part
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.weights.adapter import Adapter, read_adapter
from rrs_jax.weights.base_name import HUB_NAME


def read_start(config: ConfigDict, lora: LoRAConfig, values: dict, base: str | None = None) -> Adapter | None:
    """Returns the adapter of `lora.start`, None where the config names none.

    Args:
      lora: the run's settings.
      values: the content of the model's config.json.
      base: the name under which the model is published, None where it is not known.
    Raises UserError where it cannot be read or does not fit the model, where it was trained on a model of
    another name, and where its rank, alpha, targets or layers are not those of the run.
    """
    path = config.lora.start
    if path is None:
        return None
    adapter = read_adapter(path, values, "lora.start")
    if base and adapter.base and adapter.base != base and re.fullmatch(HUB_NAME, adapter.base):
        if not Path(adapter.base).exists():
            raise UserError(
                f"lora.start: {path} was trained on {adapter.base} and the model is {base}; give that model,"
                f" or --config.export.base_name={adapter.base} where it is the same under another name."
            )
    if not adapter.uniform:
        raise UserError(
            f"lora.start: {path} has pairs of different ranks or scales, or lacks some, and training goes on"
            " with one rank and one scale on every target and layer; merge it into the model and give that"
            " folder as model.path."
        )
    linears = tuple(part("models", values).MODEL.config_class.from_hf(values).text.adapted_linears())
    if flags := _other_settings(adapter.config, lora, linears):
        raise UserError(
            f"lora.start: {path} was trained with other settings than the run's; give {' '.join(flags)}."
        )
    return adapter


def _other_settings(own: LoRAConfig, lora: LoRAConfig, linears: tuple[str, ...]) -> list[str]:
    """Returns the flags that make the run's settings those of the adapter."""
    flags = []
    if own.rank != lora.rank:
        flags.append(f"--config.lora.rank={own.rank}")
    if not math.isclose(own.alpha, lora.alpha, rel_tol=1e-6):
        flags.append(f"--config.lora.alpha={own.alpha:.10g}")
    if set(own.targets) != set(lora.targets or linears):
        targets = "all" if set(own.targets) == set(linears) else ",".join(own.targets)
        flags.append(f"--config.lora.targets={targets}")
    if own.first_layer != lora.first_layer:
        flags.append(f"--config.lora.layers={own.first_layer or 'all'}")
    return flags
