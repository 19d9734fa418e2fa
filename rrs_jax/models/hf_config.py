"""Steps that the parsers of config.json share."""

import dataclasses
import math
from typing import Any

from rrs_jax.errors import UserError


def picked(config_class: type, values: dict) -> Any:
    """An instance of a dataclass made of those values that are its fields."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return config_class(**{name: value for name, value in values.items() if name in names})


def check_sizes(config: Any) -> None:
    """Raises ValueError for a value in a model's config, a dataclass of dataclasses, that no model has.

    An encoder of a model's own may have no layers of Whisper's kind.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if field.name.endswith("_id") or field.name == "encoder_layers" else 1
        if dataclasses.is_dataclass(value):
            check_sizes(value)
        elif field.type is int and not (type(value) is int and least <= value < 2**31):
            raise ValueError(f"{field.name} is {str(value)[:40]}, no whole number from {least}")
        elif field.type is float and not (type(value) in (int, float) and 0 < value < math.inf):
            raise ValueError(f"{field.name} is {str(value)[:40]}, no positive number")
        elif field.type is bool and type(value) is not bool:
            raise ValueError(f"{field.name} is {str(value)[:40]}, neither true nor false")


def with_rotary_base(text: dict) -> dict:
    """The decoder's values with `rope_theta`, which transformers 5 writes one level deeper, and
    `head_dim`."""
    return text | {
        "rope_theta": (text.get("rope_parameters") or {}).get("rope_theta", text["rope_theta"]),
        "head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
    }


def refuse_what_is_not_computed(text: dict, audio: dict, rope_types: tuple[str, ...] = ("default",)) -> None:
    """Raises UserError for settings under which transformers computes something else than our modules do."""
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    wanted = {
        "text_config.hidden_act": (text.get("hidden_act", "silu"), ("silu",)),
        "text_config.use_sliding_window": (bool(text.get("use_sliding_window")), (False,)),
        "text_config.rope_scaling": (scaling.get("rope_type", scaling.get("type", "default")), rope_types),
        "audio_config.activation_function": (audio.get("activation_function", "gelu"), ("gelu",)),
        "audio_config.scale_embedding": (bool(audio.get("scale_embedding")), (False,)),
    }
    wrong = [
        f"{name} is {value!r} in place of {only[0]!r}"
        for name, (value, only) in wanted.items()
        if value not in only
    ]
    if wrong:
        raise UserError(
            f"config.json: {'; '.join(wrong)}, which is not supported; use a model of the released settings."
        )
