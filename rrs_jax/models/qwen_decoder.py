"""Qwen decoder of the first generation (Bai et al. 2023): Qwen2's blocks under other names, and two measures
for sequences longer than those of its training, dynamic NTK and log-n attention."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.models.decoder import Decoder
from rrs_jax.models.decoder_layer import DecoderConfig, DecoderLayer
from rrs_jax.models.layers import rotary_angles, rotate

# A projection of the shared layer to the linear that computes it in the released model, with the third of its
# outputs where it computes three. `w2` has the gate.
RELEASED_LINEARS = {
    "q_proj": ("c_attn", 0),
    "k_proj": ("c_attn", 1),
    "v_proj": ("c_attn", 2),
    "o_proj": ("attn_c_proj", None),
    "up_proj": ("w1", None),
    "gate_proj": ("w2", None),
    "down_proj": ("mlp_c_proj", None),
}
MOST_DOUBLINGS = 16  # of the trained length, far beyond any prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenDecoderConfig(DecoderConfig):
    """Sizes of the decoder; `seq_length`: positions of its training, behind which the two switches take
    effect."""

    seq_length: int
    use_dynamic_ntk: bool
    use_logn_attn: bool

    def adapted_linears(self) -> dict[str, tuple[int, int]]:
        """Sizes (in, out) of every linear of a released layer by name. Two are called c_proj there, so that
        ours are told apart by their parents' names."""
        d, f = self.hidden_size, self.intermediate_size
        return {"c_attn": (d, 3 * d), "attn_c_proj": (d, d), "w1": (d, f), "w2": (d, f), "mlp_c_proj": (f, d)}


class QwenDecoderLayer(DecoderLayer):
    """Qwen2's layer. Its angles are (cosine, sine, factor of the queries).

    The fused c_attn is kept as three matrices, which the mesh cuts by heads; its adapter is one pair.
    """

    released = RELEASED_LINEARS

    def rotate_queries(self, q: jax.Array, angles) -> jax.Array:
        """Queries turned by their angles and stretched by their factor."""
        cos, sin, factor = angles
        return rotate(q, (cos * factor, sin * factor))

    def rotate_keys(self, k: jax.Array, angles) -> jax.Array:
        """Keys turned by their angles."""
        cos, sin, _ = angles
        return rotate(k, (cos, sin))


class QwenDecoder(Decoder):
    """The decoder whose angles depend on the prompt's length."""

    layer_class = QwenDecoderLayer

    def _angles(self, positions: jax.Array, prompt_lengths: jax.Array):
        config = self.config
        theta = config.rope_theta
        if config.use_dynamic_ntk:
            alpha = ntk_alpha(prompt_lengths, config.seq_length)
            theta = theta * (alpha ** (config.head_dim / (config.head_dim - 2)))[:, None, None, None]
        factor = jnp.ones((1, 1, 1, 1), jnp.float32)
        if config.use_logn_attn:
            factor = logn_factor(positions, config.seq_length)[..., None, None]
        return *rotary_angles(positions, config.head_dim, theta), factor

    def angle_kinds(self, lengths: np.ndarray) -> np.ndarray:
        """The stretch of the rotary base for each prompt length (N,)."""
        if not self.config.use_dynamic_ntk:
            return super().angle_kinds(lengths)
        return np.asarray(ntk_alpha(jnp.asarray(lengths), self.config.seq_length))


def ntk_alpha(prompt_lengths: jax.Array, seq_length: int) -> jax.Array:
    """Stretch of the rotary base, float32 (B,): 2^k - 1 where the prompt takes k doublings of half
    `seq_length`, at least 1. It is that of the prompt for all tokens of its answer, so that cached keys stay
    right."""
    bounds = seq_length * 2 ** jnp.arange(MOST_DOUBLINGS)
    doublings = 1 + jnp.sum(prompt_lengths[:, None] > bounds, axis=-1)
    return 2.0 ** doublings.astype(jnp.float32) - 1.0


def logn_factor(positions: jax.Array, seq_length: int) -> jax.Array:
    """Factor of the i-th position's query, log(i) / log(seq_length) and at least 1: more keys to attend to,
    sharper attention."""
    return jnp.maximum(jnp.log(positions.astype(jnp.float32) + 1.0) / math.log(seq_length), 1.0)
