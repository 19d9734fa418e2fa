"""The architectures: config.json's `model_type` to the name under which each room keeps its part of it.

`rrs_jax.inputs.NAME` has `FORMAT`, `rrs_jax.models.NAME` has `MODEL`, `rrs_jax.weights.NAME` has
`weight_table`; docs/adding_a_model.md says what each must give. Only this file and those three know a model
by its name.
"""

import importlib
from types import ModuleType

from rrs_jax.errors import UserError

ARCHITECTURES = {
    "qwen2_audio": "qwen2_audio",
    "qwen2_5_omni": "qwen2_5_omni",
    "qwen2_5_omni_thinker": "qwen2_5_omni",
    "qwen": "qwen_audio",
}


def check_architecture(values: object, source: object) -> None:
    """Raises UserError where `values`, the content of config.json, are of no known architecture; `source`
    names the file in the message."""
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(
            f"{source}: model_type is {model_type!r}; supported: {', '.join(sorted(ARCHITECTURES))}."
        )
    if model_type == "qwen" and not isinstance(values.get("audio"), dict):  # the type of a text model too
        raise UserError(
            f'{source}: has no "audio"; of the models of type qwen, Qwen-Audio-Chat alone is supported.'
        )


def part(room: str, values: dict) -> ModuleType:
    """The module of `inputs`, `models` or `weights` for the architecture of a config.json's content.

    Imported here, so that a room needs to import no other one to find its own part.
    """
    return importlib.import_module(f"rrs_jax.{room}.{ARCHITECTURES[values['model_type']]}")
