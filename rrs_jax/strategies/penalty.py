"""The penalty on how far the weights have moved, equation 13."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.models.lora import LoRAParam

SPACES = ("weights", "lora")
SUM_PARTS = 16


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
        total += pair.scale**2 * product_norm(pair.lora_a[...], pair.lora_b[...])
    return total


@jax.custom_vjp
def product_norm(a: jax.Array, b: jax.Array) -> jax.Array:
    """‖A·B‖²_F summed over layers; a (L, I, R), b (L, R, O). Its derivative, 2·A·(BBᵀ) and 2·(AᵀA)·B, takes
    half the products that JAX would make for it."""
    return _product_norm(a, b)[0]


def _product_norm(a, b):
    gram_a, gram_b = _gram(a), _gram(jnp.swapaxes(b, 1, 2))
    return jnp.sum(gram_a * gram_b), (a, b, gram_a, gram_b)


def _gram(x):
    """XᵀX of each layer, x (L, N, R). In parts of the sum: a GPU gives a product of so few numbers to one
    processor, which takes the longer the more there is to sum."""
    parts = math.gcd(x.shape[1], SUM_PARTS)
    x = x.reshape(len(x), parts, -1, x.shape[2])
    # A GPU's default of TF32 has 3 digits.
    return jnp.einsum("LPNR,LPNQ->LPRQ", x, x, precision="highest").sum(axis=1)


def _product_norm_gradient(residuals, cotangent):
    a, b, gram_a, gram_b = residuals
    da = jnp.einsum("LIR,LRQ->LIQ", a, 2 * cotangent * gram_b, precision="highest")
    db = jnp.einsum("LRQ,LQO->LRO", 2 * cotangent * gram_a, b, precision="highest")
    return da, db


product_norm.defvjp(_product_norm, _product_norm_gradient)


def lora_space(state, initial) -> jax.Array:
    """Squared distance of all A and B from their initial values."""
    distances = jax.tree.map(lambda now, start: jnp.sum((now - start) ** 2), state, initial)
    return sum(jax.tree.leaves(distances), jnp.float32(0))
