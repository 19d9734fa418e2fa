"""Tensors with NaN or infinite numbers, found in one pass over loaded weights on their devices."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.distributed.mesh import fetch, replicated
from rrs_jax.weights.table import Row

ON_HOST = 2**22  # bytes of an array from which a program on the device is quicker than NumPy


def is_finite(array: jax.Array, is_stacked: bool, mesh) -> jax.Array | np.ndarray:
    """True where all numbers of a parameter are finite: bool (), or (layers,) of one with layers stacked."""
    axes = tuple(range(int(is_stacked), array.ndim))
    if array.nbytes <= ON_HOST and array.is_fully_addressable:
        return np.isfinite(np.asarray(array)).all(axis=axes)
    return _finite_on_devices(mesh)(array, axes)


@functools.lru_cache(maxsize=8)
def _finite_on_devices(mesh):
    # Not the largest number, though it is found sooner: XLA passes over NaN there on a CPU.
    def finite(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return jnp.isfinite(array).all(axis=axes)

    return jax.jit(finite, static_argnums=1, out_shardings=replicated(mesh))


def tensors_not_finite(checked: Iterable[tuple[Row, jax.Array | np.ndarray]]) -> list[str]:
    """Returns the names on disk of the tensors that are not finite, each once.

    checked: each row of the weights' table with what `is_finite` says of its parameter.
    """
    rows, flags = zip(*checked, strict=True)
    names = [
        name
        for row, finite in zip(rows, fetch(list(flags)), strict=True)
        for name, good in zip(row.names(), np.atleast_1d(finite), strict=True)
        if not good
    ]
    return list(dict.fromkeys(names))
