"""Memory of a training step: what waits for the backward pass, and which `train.remat` fits."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rrs_jax.models.kept_values import kept_bytes

HEADROOM = 1.2  # over what is saved: workspaces, gradients, and what the allocator cannot join


def activation_bytes(config: ConfigDict, text, tokens: int, parts: int, remat: str) -> float:
    """Bytes that wait for the backward pass of a micro-batch whose rows have `tokens`, on one of the `parts`
    that cut it, and the copies of 8-bit layers that are set apart for it."""
    item = jnp.dtype(config.model.dtype).itemsize
    rows = math.ceil(config.train.batch_size / config.train.gradient_accumulation / parts)
    layers = text.num_hidden_layers - (0 if config.lora.layers == "all" else config.lora.layers)
    activations = kept_bytes(text, remat, layers=layers, rows=rows, tokens=tokens, item=item)
    apart = config.train.unroll and text.quantize == "float8" and jax.device_count() == 1  # `TrainStep.renew`
    return activations + (
        2 * text.num_hidden_layers * sum(a * b for a, b in text.linears().values()) if apart else 0
    )


def fitting_remat(config: ConfigDict, text, tokens: int, parts: int, free: float) -> str:
    """The first of `dots` and `lean` whose values of a micro-batch fit into `free` bytes with some room to
    spare, else `full`."""
    for remat in ("dots", "lean"):
        if activation_bytes(config, text, tokens, parts, remat) * HEADROOM <= free:
            return remat
    return "full"
