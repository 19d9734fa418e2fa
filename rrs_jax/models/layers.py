"""Building blocks that encoder and decoder share.

Every parameter of a stack of layers carries a leading axis L, written `stack=(L,)` here; inside the scan
over layers the axis is gone and the same module computes with what is left.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from rrs_jax.models.quantised import Float8, Int8, product


class Linear(nnx.Module):
    """`x @ kernel + bias`; the kernel is (..., in, out), the transpose of torch's weight.

    With `quantize` it has 8 bit and a `scale` for each output: `int8` as `kernel`, `float8` as `weight` (...,
    out, in) (`rrs_jax.models.quantised`), and after `transpose_too` as `columns` (..., in, out) besides.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype,
        stack: tuple[int, ...] = (),
        quantize: str = "none",
    ):
        if quantize == "float8":
            self.weight = nnx.Param(jnp.zeros((*stack, out_features, in_features), jnp.float8_e4m3fn))
        else:
            kept = jnp.int8 if quantize == "int8" else dtype
            self.kernel = nnx.Param(jnp.zeros((*stack, in_features, out_features), kept))
        self.columns = nnx.data(None)
        self.quantize = quantize
        self.scale = None if quantize == "none" else nnx.Param(jnp.ones((*stack, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((*stack, out_features), dtype)) if bias else None

    @property
    def matrix(self) -> jax.Array | Int8 | Float8:
        """The matrix for `rrs_jax.models.quantised.product`."""
        if self.quantize == "float8":
            return Float8(
                self.weight[...], self.scale[...], None if self.columns is None else self.columns[...]
            )
        return Int8(self.kernel[...], self.scale[...]) if self.quantize == "int8" else self.kernel[...]

    def transpose_too(self) -> None:
        """Keeps a float8 matrix transposed besides, so that the backward pass transposes nothing."""
        self.columns = nnx.Param(jnp.swapaxes(self.weight[...], -2, -1))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = product(x, self.matrix)
        if self.bias is None:
            return y
        # cuBLAS could add the bias itself; XLA then copies the kernel out of its stack (see
        # `rrs_jax.models.stack`).
        return jax.lax.optimization_barrier(y) + self.bias[...]


class RMSNorm(nnx.Module):
    """Root-mean-square norm in float32, cast back, then scaled: the order of operations of Qwen2."""

    def __init__(self, features: int, *, eps: float, dtype, stack: tuple[int, ...] = ()):
        self.weight = nnx.Param(jnp.ones((*stack, features), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * wide.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm in float32, cast back at the end."""

    def __init__(self, features: int, *, dtype, stack: tuple[int, ...] = (), eps: float = 1e-5):
        self.weight = nnx.Param(jnp.ones((*stack, features), dtype))
        self.bias = nnx.Param(jnp.zeros((*stack, features), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.weight[...] + self.bias[...]).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x·Φ(x) by the error function, as torch has it. `jax.nn.gelu` takes erfc, for which XLA computes two
    branches of each number: on an H100 that is twice the time of reading and writing it."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def rotary_angles(
    positions: jax.Array, head_dim: int, theta: float, sections: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32 (B, T, 1, E/2), of positions (B, T) (RoPE, Su et al. 2021, half-split).

    With `sections`, positions are (3, B, T), in time, height and width, and each section of so many
    frequencies takes its angle from the next of the three (TMRoPE, Xu et al. 2025).
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    if sections:
        parts = jnp.split(angles, np.cumsum(sections)[:-1], axis=-1)
        angles = jnp.concatenate([part[i % 3] for i, part in enumerate(parts)], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies the rotation to x (B, T, H, E), in float32."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention(q, k, v, *, causal: bool, key_lengths=None, mask=None) -> jax.Array:
    """Scaled dot-product attention, (B, T, H, E), of q (B, T, H, E) to k and v (B, S, K, E).

    cuDNN's flash attention on a GPU in 16 bit, XLA elsewhere. `key_lengths` (B,) hides keys past a row's end;
    causal attention over right-padded rows does not need it.
    """
    if causal and mask is None:
        key_lengths = None
    sixteen_bit = q.dtype in (jnp.bfloat16, jnp.float16)
    flash = jax.default_backend() == "gpu" and sixteen_bit and mask is None and q.shape[1] > 1
    attended = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=causal,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn" if flash else "xla",
    )
    # cuDNN's derivative keeps this output by itself (`rrs_jax.models.stack.rematerialise`); by name it would
    # be kept twice.
    return attended if flash else checkpoint_name(attended, "attended")
