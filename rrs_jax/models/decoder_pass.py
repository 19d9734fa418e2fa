"""A pass through the decoder: its inputs, the intermediates that are wanted, and its output."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from rrs_jax.models.cache import KeysValues
from rrs_jax.models.dropout import Dropout


@flax.struct.dataclass
class TreeLayout:
    """How the tokens of several prompts in one row see each other.

    Attributes:
      positions: int32 (B, T), of each token in its own prompt.
      branches: int32 (B, T), 0 for the common prefix, 1, 2, ... for the suffixes. A token sees what stands
        before it of branch 0 and of its own branch.
    """

    positions: jax.Array
    branches: jax.Array

    def mask(self, prefix: int = 0) -> jax.Array:
        """Which keys a token sees: bool (B, 1, T, S), those of `prefix` tokens before all rows first.

        Example: branches [0 0 1 1 2] and a prefix of one token give the rows

            1  1 0 0 0 0      prefix, then the common tokens up to this one
            1  1 1 0 0 0
            1  1 1 1 0 0      the first suffix sees the common tokens and itself
            1  1 1 1 1 0
            1  1 1 0 0 1      the second suffix does not see the first
        """
        order = jnp.arange(self.branches.shape[1])
        seen = (self.branches[:, None] == 0) | (self.branches[:, None] == self.branches[..., None])
        seen = (seen & (order <= order[:, None]))[:, None]
        return jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (prefix, 0)), constant_values=True)


@flax.struct.dataclass
class DecoderInputs:
    """Rows that enter the decoder, padded on the right.

    Attributes:
      states: (B, T, D), embeddings, or the hidden states behind the layers below `start`.
      lengths: int32 (B,), tokens of a row's prompt without the prefix; of a tree's longest one, with it.
      start: the first layer that is computed.
      tree: None where every row is one prompt.
      prefix: keys and values (L, P, K, E) of tokens that all rows begin with and none of them holds, without
        a derivative; not with `Wanted.last_only`.
      dropout: masks of the adapters' inputs; None drops nothing.
    """

    states: jax.Array
    lengths: jax.Array
    start: int = flax.struct.field(pytree_node=False, default=0)
    tree: TreeLayout | None = None
    prefix: KeysValues | None = None
    dropout: Dropout | None = None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which intermediates a pass computes. By default the states behind all layers.

    Attributes:
      stop: layers from here on are not computed; None for all.
      last_only: the layer before `stop` is computed for each row's last token alone, so that only this
        position goes through its query, output projection and MLP.
      each_layer: what is read behind every layer: positions counted back from a row's last token, such as
        (0,) for this one alone, or `all` tokens, or None.
      keys_values: dtype in which every layer's keys and values are returned (int8: with a scale for each
        token and head), or None.

    The last two are read of the layers that are computed for all tokens.
    """

    stop: int | None = None
    last_only: bool = False
    each_layer: tuple[int, ...] | str | None = None
    keys_values: jax.typing.DTypeLike | None = None


STATES = Wanted()


@flax.struct.dataclass
class DecoderOutput:
    """The intermediates of a pass; L counts the layers that were computed for all tokens.

    Attributes:
      states: (B, T, D), behind the last of these layers, before the final norm; garbage past a row's length.
      last: float32 (B, D), each row's last token after the final norm, where `last_only` was wanted.
      each_layer: float32 (L, B, J, D) for J positions, (L, B, T, D) for `all`, before the final norm.
      keys_values: (L, B, K, T, E).
    """

    states: jax.Array
    last: jax.Array | None = None
    each_layer: jax.Array | None = None
    keys_values: KeysValues | None = None


def last_tokens(x: jax.Array, lengths: jax.Array, back: tuple[int, ...] = (0,)) -> jax.Array:
    """Each row's last token out of (B, T, ...), or J tokens counted back from it: (B, J, ...)."""
    places = (lengths - 1)[:, None] - jnp.asarray(back, lengths.dtype)[None]
    return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)
