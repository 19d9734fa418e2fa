"""A map over the positions whose logits are made, a few of them at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

TOKENS = 256  # whose logits (V wide, float32) exist at the same time


def map_positions(function: Callable, *arrays: jax.Array):
    """Maps `function` over the positions of arrays (B, J, ...), and again in the backward pass.

    Logits that `function` makes of a position's states are thrown away behind it, so that no (B, J, V) array
    exists; their product is made a second time for the derivative.

    Args:
      function: of arrays (B, ...), one position of each row, to a tree of arrays (B, ...).
    Returns:
      The tree with arrays (B, J, ...).
    """
    by_position = [jnp.swapaxes(array, 0, 1) for array in arrays]
    at_once = max(1, TOKENS // arrays[0].shape[0])
    # One checkpoint around all that is in memory together, which `jax.lax.map` makes of single positions.
    outs = jax.lax.map(lambda own: jax.checkpoint(function)(*own), by_position, batch_size=at_once)
    return jax.tree.map(lambda out: jnp.swapaxes(out, 0, 1), outs)
