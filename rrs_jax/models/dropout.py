"""Dropout of the adapters' inputs in training, as PEFT's `lora_dropout`, by masks that are hashes of a place.

Whether a number is dropped is a hash of the draw (seed, step and micro-batch), the layer, the adapter, and
the number's row, token and feature. So a mask takes no memory, the backward pass makes it anew, a run that
goes on has the same, and so has a mesh of any shape.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

TOKEN_BITS = 16  # of a place's 32: a pass has fewer than 2**16 rows and fewer than 2**16 tokens
GOLDEN = np.uint32(0x9E3779B9)  # 2**32 divided by the golden ratio, odd
MULTIPLIERS = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # of Wellons's lowbias32


@flax.struct.dataclass
class Dropout:
    """Masks of one pass through the decoder, for all its layers or for one.

    Attributes:
      places: uint32 (L, K, B, T), random bits of every layer, adapter, row and token; of one layer (K, B, T).
      owners: name of each linear that has an adapter, and the adapter's. Linears that are parts of a released
        one share its adapter. The K adapters are numbered as they occur first.
      rate: probability p that a number is dropped.
    """

    places: jax.Array
    owners: tuple[tuple[str, str], ...] = flax.struct.field(pytree_node=False)
    rate: float = flax.struct.field(pytree_node=False)

    @classmethod
    def draw(
        cls, key: jax.Array, owners: dict[str, str], rate: float, shape: tuple[int, int, int]
    ) -> "Dropout":
        """The masks of a pass by a random key; `shape` is (L, B, T)."""
        layers, rows, tokens = shape
        seeds = jax.random.bits(key, (2, layers, len({*owners.values()}), 1, 1), jnp.uint32)
        row, token = (jax.lax.broadcasted_iota(jnp.uint32, (rows, tokens), axis) for axis in (0, 1))
        places = _hashed(_hashed((row << TOKEN_BITS | token) ^ seeds[0]) ^ seeds[1])
        return cls(places, tuple(owners.items()), rate)

    def of_layer(self, places: jax.Array) -> "Dropout":
        """One layer's masks, from its part (K, B, T) of `places`."""
        return self.replace(places=places)

    def at_last_tokens(self, lengths: jax.Array) -> "Dropout":
        """One layer's masks of each row's last token alone, (K, B, 1)."""
        return self.replace(places=jnp.take_along_axis(self.places, (lengths - 1)[None, :, None], axis=2))

    def share(self, names: tuple[str, ...]) -> "Share":
        """The part that linears with one input have in a layer's masks."""
        owners = dict(self.owners)
        own = list(dict.fromkeys(owners[name] for name in names if name in owners))
        numbers = list(dict.fromkeys(owners.values()))
        return Share(
            adapters=tuple(own),
            numbers=tuple(numbers.index(adapter) for adapter in own),
            owners=tuple(own.index(owners[name]) if name in owners else None for name in names),
            rate=self.rate,
        )


@dataclasses.dataclass(frozen=True)
class Share:
    """Adapters of linears with one input, among all of a layer.

    Attributes:
      adapters: their names.
      numbers: their numbers among the layer's.
      owners: for each linear the place of its adapter in `adapters`, None for a linear without one.
      rate: as of `Dropout`.
    """

    adapters: tuple[str, ...]
    numbers: tuple[int, ...]
    owners: tuple[int | None, ...]
    rate: float

    @property
    def threshold(self) -> np.uint32:
        """Number below which a hash drops: p of all."""
        return np.uint32(round(self.rate * 2**32))

    @property
    def scale(self) -> float:
        """Factor of what is kept, so that its expectation is the whole."""
        return 1 / (1 - self.rate)

    def masks(self, places: jax.Array, features: int, threshold) -> list[jax.Array]:
        """Each adapter's mask, bool (B, T, features), from the layer's places (K, B, T)."""
        return [kept(places[number], features, threshold) for number in self.numbers]


def kept(places: jax.Array, features: int, threshold) -> jax.Array:
    """Mask of one adapter's input, bool (B, T, features), from the random bits of its places (B, T).

    Two rounds of shift and multiplication, few enough to vanish beside the memory traffic of the fusion that
    they stand in. The third shift of `_hashed` would not change the upper bits, which decide.
    """
    feature = jax.lax.broadcasted_iota(jnp.uint32, (*places.shape, features), places.ndim)
    bits = places[..., None] ^ (feature * GOLDEN)
    bits = (bits ^ (bits >> 16)) * MULTIPLIERS[0]
    return (bits ^ (bits >> 15)) * MULTIPLIERS[1] >= threshold


def _hashed(bits: jax.Array) -> jax.Array:
    """32 bits to 32 bits, one to one, each output bit a mixture of all input bits."""
    bits = (bits ^ (bits >> 16)) * MULTIPLIERS[0]
    bits = (bits ^ (bits >> 15)) * MULTIPLIERS[1]
    return bits ^ (bits >> 16)
