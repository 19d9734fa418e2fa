"""Dropout of the adapters' inputs in training, as PEFT's `lora_dropout`, by masks that are hashes of a place.

Whether a number is dropped is a hash of the draw (seed, step and micro-batch), the layer, the adapter, and
the number's row, token and feature. So a mask takes no memory, the backward pass makes it anew, a run that
goes on has the same, and so has a mesh of any shape.

The hash is in two parts, since there are 10**10 numbers in a step of a large model. Row and token, and
feature, are hashed thoroughly, once for a layer. A number's own part is one multiplication of both and one
addition (Dietzfelbinger et al. 1997), few enough operations to vanish beside the memory traffic.
"""

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
      tokens: uint32 (L, 2, K, B, T), two hashes of every adapter's rows and tokens; the second is odd.
      features: uint32 (L, I), hashes of the features of the widest input.
      owners: name of each linear that has an adapter, and the adapter's. Linears that are parts of a released
        one share its adapter. The K adapters are numbered as they occur first.
      rate: probability p that a number is dropped.
    """

    tokens: jax.Array
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
        shifts, factors = (_hashed(key, seeds, place) for key in keys[:2])
        return cls(
            jnp.stack([shifts, factors | np.uint32(1)], axis=1),
            _hashed(keys[2], (layers, 1), jnp.arange(features, dtype=jnp.uint32)),
            tuple(owners.items()),
            rate,
        )

    def at_last_tokens(self, lengths: jax.Array) -> "Dropout":
        """One layer's masks of each row's last token alone: `tokens` (2, K, B, 1)."""
        last = (lengths - 1)[None, None, :, None]
        return self.replace(tokens=jnp.take_along_axis(self.tokens, last, axis=-1))

    def mask(self, adapter: int, features: int, threshold: jax.Array | None = None) -> jax.Array:
        """One layer's mask of an adapter's input, bool (B, T, features); False where a number is dropped.

        threshold: another array of the value of `Dropout.threshold`.
        """
        shift, factor = self.tokens[:, adapter, ..., None]
        threshold = self.threshold if threshold is None else threshold
        return kept(self.features[:features], shift, factor, threshold)

    @property
    def threshold(self) -> np.uint32:
        """Number below which a hash drops: p of all."""
        return np.uint32(round(self.rate * 2**32))

    def numbers(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Numbers of the adapters of the linears `names`, each once."""
        owners = dict(self.owners)
        adapters = list(dict.fromkeys(owners.values()))
        return tuple(dict.fromkeys(adapters.index(owners[name]) for name in names if name in owners))


def kept(features, shifts, factors, threshold) -> jax.Array:
    """True where a number is kept, by the hashes of its feature and of its token, which broadcast."""
    return features * factors + shifts >= threshold


def _hashed(key: jax.Array, seeds: tuple[int, ...], numbers: jax.Array) -> jax.Array:
    """Random bits, uint32, of every seed (seeds) and number, which broadcast: two rounds of a hash of 32 bits
    with a seed before each."""
    for seed in jax.random.bits(key, (2, *seeds), jnp.uint32):
        numbers = numbers ^ seed
        numbers = (numbers ^ (numbers >> 16)) * MULTIPLIERS[0]
        numbers = (numbers ^ (numbers >> 15)) * MULTIPLIERS[1]
        numbers = numbers ^ (numbers >> 16)
    return numbers
