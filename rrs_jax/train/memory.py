"""Memory of a training step: what waits for the backward pass, and which `train.remat` fits."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

# Elements a token and layer that wait for the backward pass, as multiples of (hidden, mlp) width; fitted to
# the temporary memory of compiled 7 B steps: 14.3, 6.1 and 1.1 GiB at 2,304 tokens.
SAVED = {"none": (15, 4), "dots": (6, 2), "gate": (6, 1), "lean": (6, 0), "full": (2, 0)}
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


def kept_bytes(text, remat: str, *, layers: int, rows: int, tokens: int, item: int) -> float:
    """Bytes that `rows` of so many tokens, with numbers of `item` bytes, keep in `layers` layers of a decoder
    of the sizes `text` for the backward pass."""
    hidden, mlp = SAVED[remat]
    saved = layers * (hidden * text.hidden_size + mlp * text.intermediate_size)
    if remat in ("gate", "lean"):  # and one layer's gate and up at a time computed again
        saved += (SAVED["dots"][1] - mlp) * text.intermediate_size
    if remat == "full":  # and one layer at a time computed again
        saved += SAVED["none"][0] * text.hidden_size + SAVED["none"][1] * text.intermediate_size
    activations = rows * tokens * saved * item
    if (
        jax.default_backend() != "gpu" or item == 4
    ):  # no flash attention: scores and weights are whole matrices
        scores = 2 * rows * text.num_attention_heads * tokens**2 * 4
        activations += scores * (layers if remat == "none" else 1)
    return activations


def fitting_remat(config: ConfigDict, text, tokens: int, parts: int, free: float) -> str:
    """The first of `dots` and `lean` whose values of a micro-batch fit into `free` bytes with some room to
    spare, else `full`."""
    for remat in ("dots", "lean"):
        if activation_bytes(config, text, tokens, parts, remat) * HEADROOM <= free:
            return remat
    return "full"
