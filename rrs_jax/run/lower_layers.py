"""Which layers below the first adapter a run computes once for many prompts
(`rrs_jax.frozen.prefix_states`)."""

import jax
from ml_collections import ConfigDict

from rrs_jax.config.strategy_table import STRATEGY_TABLE


def lower_layers(config: ConfigDict) -> int:
    """Layers below the first adapter whose hidden states a run computes once
    (`rrs_jax.frozen.prefix_states`), 0 for none.

    Of the strategies only RRS reads nothing but the drawn prompts' last states. Fine-tuning and more
    positions have answers behind the prompts, which are not known when the states are made; rerouting
    compares states behind layers that may lie below, and HARC states at a second position.
    """
    serves = STRATEGY_TABLE[config.strategy].module == "rrs" and config.rrs.positions == 1
    return (
        config.lora.layers if serves and config.train.lower_states_gib and config.lora.layers != "all" else 0
    )


def answers_alike(config: ConfigDict) -> bool:
    """True where evaluation asks the vanilla and the trained model, and has both compute alike.

    On a CPU alone. A GPU adds an adapter's output to the product before it rounds to 16 bit, so that adapters
    of zeros round otherwise than none; and it computes layers in less time than their keys and values take to
    the host and back.
    """
    both = STRATEGY_TABLE[config.strategy].trains and config.evaluate.vanilla and not config.endpoint.url
    return both and jax.default_backend() == "cpu"


def shared_layers(config: ConfigDict) -> int:
    """Layers below the first adapter whose hidden states, keys and values evaluation computes once for both
    models, 0 for none."""
    kept = answers_alike(config) and config.train.lower_states_gib and config.lora.layers != "all"
    return config.lora.layers if kept else 0
