"""Dropout of the adapters' inputs in training, as PEFT's `lora_dropout`, by masks that are hashes of a place.

Whether a number is dropped is a hash of the draw (seed, step and micro-batch), the layer, the adapter, and
the number's row, token and feature. So a mask takes no memory, the backward pass makes it anew, a run that
goes on has the same, and so has a mesh of any shape.

The hash is in two parts, since there are 10**10 numbers in a step of a large model. Row and token, and
feature, are hashed thoroughly, once for a layer. A number's own part is one multiplication of both
(Dietzfelbinger et al. 1997), few enough operations to vanish beside the memory traffic of the fusion that
they stand in.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

TOKEN_BITS = 16  # of a place's 32: a pass has fewer than 2**16 rows and fewer than 2**16 tokens
MULTIPLIERS = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # of Wellons's lowbias32


@flax.struct.dataclass
class Dropout:
    """Masks of one pass through the decoder, for all its layers or for one, whose arrays lack the L.

    Attributes:
      places, factors: uint32 (L, K, B, T), two hashes of every adapter's rows and tokens; factors are odd.
      features: uint32 (L, I), hashes of the features of the widest input.
      owners: name of each linear that has an adapter, and the adapter's. Linears that are parts of a released
        one share its adapter. The K adapters are numbered as they occur first.
      rate: probability p that a number is dropped.
    """

    places: jax.Array
    factors: jax.Array
    features: jax.Array
    owners: tuple[tuple[str, str], ...] = flax.struct.field(pytree_node=False)
    rate: float = flax.struct.field(pytree_node=False)

    @classmethod
    def draw(
        cls, key: jax.Array, owners: dict[str, str], rate: float, shape: tuple[int, int, int, int]
    ) -> "Dropout":
        """The masks of a pass by a random key; `shape` is (L, B, T, I)."""
        layers, rows, tokens, features = shape
        keys, adapters = jax.random.split(key, 3), len({*owners.values()})
        row, token = (jax.lax.broadcasted_iota(jnp.uint32, (rows, tokens), axis) for axis in (0, 1))
        place, seeds = row << TOKEN_BITS | token, (layers, adapters, 1, 1)
        return cls(
            _hashed(keys[0], seeds, place),
            _hashed(keys[1], seeds, place) | np.uint32(1),
            _hashed(keys[2], (layers, 1), jnp.arange(features, dtype=jnp.uint32)),
            tuple(owners.items()),
            rate,
        )

    def at_last_tokens(self, lengths: jax.Array) -> "Dropout":
        """One layer's masks of each row's last token alone: places and factors (K, B, 1)."""
        last = (lengths - 1)[None, :, None]
        places, factors = (jnp.take_along_axis(array, last, axis=2) for array in (self.places, self.factors))
        return self.replace(places=places, factors=factors)

    def mask(self, adapter: int, features: int, threshold: jax.Array | np.uint32) -> jax.Array:
        """One layer's mask of an adapter's input, bool (B, T, features); False where a number is dropped.

        threshold: `Share.threshold`.
        """
        place, factor = self.places[adapter][..., None], self.factors[adapter][..., None]
        return (self.features[:features] ^ place) * factor >= threshold

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

    def masks(self, dropout: Dropout, features: int, threshold) -> list[jax.Array]:
        """Each adapter's mask, bool (B, T, features), from one layer's."""
        return [dropout.mask(number, features, threshold) for number in self.numbers]


def _hashed(key: jax.Array, seeds: tuple[int, ...], numbers: jax.Array) -> jax.Array:
    """Random bits, uint32, of every seed (seeds) and number, which broadcast: two rounds of a hash of 32 bits
    with a seed before each."""
    for seed in jax.random.bits(key, (2, *seeds), jnp.uint32):
        numbers = numbers ^ seed
        numbers = (numbers ^ (numbers >> 16)) * MULTIPLIERS[0]
        numbers = (numbers ^ (numbers >> 15)) * MULTIPLIERS[1]
        numbers = numbers ^ (numbers >> 16)
    return numbers
