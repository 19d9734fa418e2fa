"""The penalty on how far the weights have moved, equation 13."""

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.models.lora import LoRAParam

SPACES = ("weights", "lora")


def penalty(model: nnx.Module, space: str, initial=None) -> jax.Array:
    """‖θ − θ0‖², a float32 scalar, differentiable in the model's LoRA parameters.

    `weights`: over the decoder's weight matrices, exactly. `lora`: over the adapters' own numbers, `initial`
    being their state (`nnx.state(model, LoRAParam)`) at the start.
    """
    if space == "weights":
        return weight_space(model.lora)
    if space == "lora":
        return lora_space(nnx.state(model, LoRAParam), initial)
    raise ValueError(f"penalty.space is one of {', '.join(SPACES)}, not {space!r}")


def weight_space(lora) -> jax.Array:
    """Σ over layers and targets of ‖s·A·B‖²_F = s²·tr((AᵀA)(BBᵀ)): rank² numbers, never a whole matrix.

    Nothing is subtracted: training starts at B = 0, where θ = θ0.
    """
    total = jnp.float32(0)
    for target in lora.config.targets:
        pair = lora.pair(target)
        a, b = pair.lora_a[...], pair.lora_b[...]
        gram_a = jnp.einsum("LIR,LIQ->LRQ", a, a, precision="highest")  # a GPU's default of TF32 has 3 digits
        gram_b = jnp.einsum("LRO,LQO->LRQ", b, b, precision="highest")
        total += pair.scale**2 * jnp.sum(gram_a * gram_b)
    return total


def lora_space(state, initial) -> jax.Array:
    """Squared distance of all A and B from their initial values."""
    distances = jax.tree.map(lambda now, start: jnp.sum((now - start) ** 2), state, initial)
    return sum(jax.tree.leaves(distances), jnp.float32(0))
