"""The thin products of adapters that read the same input, and their derivatives, with and without dropout.

The matrices A (I, r) of K adapters stand side by side in one (I, K·r). With dropout each adapter sees the
input x with its own mask m, so that its r columns are those of (m ⊙ x)·A.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rrs_jax.distributed.mesh import each_with_its_rows, traced_size
from rrs_jax.models import dropout_kernels
from rrs_jax.models.dropout import Dropout

ROWS = PartitionSpec(("data", "fsdp"))
WHOLE = PartitionSpec()


def thin_product(numbers: tuple[int, ...], x: jax.Array, a: jax.Array, dropout: Dropout | None) -> jax.Array:
    """(B, T, K·r) of x (B, T, I). numbers: of the adapters among those of `dropout`, one layer's masks; None
    drops nothing."""
    if dropout is None:
        return x @ a
    if _in_a_kernel(a.dtype, x.shape, a.shape[1] // len(numbers)):
        kernel = functools.partial(dropout_kernels.thin_product, numbers)
        return each_with_its_rows(kernel, (ROWS, WHOLE, _specs(dropout)), ROWS)(x, a, dropout)
    parts = zip(_masks(numbers, x.shape[-1], dropout), jnp.split(a, len(numbers), axis=1), strict=True)
    return jnp.concatenate([jnp.where(mask, x, 0) @ a_one for mask, a_one in parts], axis=-1)


def input_gradient(
    numbers: tuple[int, ...], a: jax.Array, of_thin: jax.Array, dropout: Dropout | None
) -> jax.Array:
    """Derivative of `thin_product` by x, (B, T, I), from that by its result."""
    if dropout is None:
        return of_thin @ a.T
    if _in_a_kernel(a.dtype, (*of_thin.shape[:2], a.shape[0]), a.shape[1] // len(numbers)):
        kernel = functools.partial(dropout_kernels.input_gradient, numbers)
        return each_with_its_rows(kernel, (WHOLE, ROWS, _specs(dropout)), ROWS)(a, of_thin, dropout)
    masks, of_thin = _masks_again(numbers, a.shape[0], dropout, of_thin)
    parts = zip(masks, *(jnp.split(one, len(numbers), axis=-1) for one in (of_thin, a)), strict=True)
    return sum(jnp.where(mask, one @ a_one.T, 0) for mask, one, a_one in parts)


def matrix_gradient(
    numbers: tuple[int, ...], x: jax.Array, of_thin: jax.Array, dropout: Dropout | None
) -> jax.Array:
    """Derivative of `thin_product` by a, (I, K·r), from that by its result."""
    if dropout is None:
        return over_tokens(x, of_thin)
    if _in_a_kernel(x.dtype, x.shape, of_thin.shape[-1] // len(numbers)):
        kernel = functools.partial(dropout_kernels.matrix_gradient, numbers)
        return each_with_its_rows(kernel, (ROWS, ROWS, _specs(dropout)), WHOLE)(x, of_thin, dropout)
    masks, of_thin = _masks_again(numbers, x.shape[-1], dropout, of_thin)
    parts = zip(masks, jnp.split(of_thin, len(numbers), axis=-1), strict=True)
    return jnp.concatenate([over_tokens(jnp.where(mask, x, 0), one) for mask, one in parts], axis=-1)


def over_tokens(x: jax.Array, dy: jax.Array) -> jax.Array:
    """xᵀ·dy, (I, O), of (B, T, I) and (B, T, O)."""
    rows = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, dy, (rows, rows))


def _in_a_kernel(dtype, shape: tuple[int, int, int], rank: int) -> bool:
    """True where the kernels compute the products of an input of this shape (B, T, I): on GPUs, of which each
    has rows of its own with all their features."""
    rows, over = shape[0], traced_size("data") * traced_size("fsdp")
    apart = jax.default_backend() == "gpu" and traced_size("tensor") == 1 and rows % over == 0
    return apart and dropout_kernels.serves(dtype, (rows // over * shape[1], shape[2]), rank)


def _masks(numbers: tuple[int, ...], features: int, dropout: Dropout, threshold=None) -> list[jax.Array]:
    return [dropout.mask(number, features, threshold) for number in numbers]


def _masks_again(
    numbers: tuple[int, ...], features: int, dropout: Dropout, of_thin: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Masks for the backward pass, and `of_thin`. Behind the barrier the masks are others to XLA than the
    forward pass's, which it would keep for them."""
    threshold, of_thin = jax.lax.optimization_barrier((jnp.asarray(dropout.threshold), of_thin))
    return _masks(numbers, features, dropout, threshold), of_thin


def _specs(dropout: Dropout) -> Dropout:
    """How a layer's masks are cut where rows are."""
    return dropout.replace(tokens=PartitionSpec(None, None, ("data", "fsdp")), features=WHOLE)
