"""One layer of a Qwen2 decoder (Yang et al. 2024), and the decoder's sizes."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from rrs_jax.models.adapters import SAME_INPUT, Adapters
from rrs_jax.models.layers import Linear, RMSNorm, rotate


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    mrope_section: tuple[int, ...] = ()
    quantize: str = "none"  # of the linears' matrices, see `rrs_jax.models.quantised`

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name to (in, out) of every linear of a layer."""
        d, f = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (d, queries),
            "k_proj": (d, keys),
            "v_proj": (d, keys),
            "o_proj": (queries, d),
            "gate_proj": (d, f),
            "up_proj": (d, f),
            "down_proj": (f, d),
        }

    def adapted_linears(self) -> dict[str, tuple[int, int]]:
        """Those that LoRA names: the linears as the released model has them."""
        return self.linears()


class DecoderLayer(nnx.Module):
    """One layer, in pieces, so that the last one can run for one position and decoding can use a cache.

    `released`: each linear's name in `DecoderConfig.adapted_linears`, with the third of the outputs where the
    released linear computes three.
    """

    released: ClassVar[dict[str, tuple[str, int | None]]] = {
        name: (name, None) for names in SAME_INPUT for name in names
    }

    def __init__(self, config: DecoderConfig, *, dtype, stack: tuple[int, ...]):
        self.head_dim = config.head_dim
        eps = config.rms_norm_eps
        self.input_layernorm = RMSNorm(config.hidden_size, eps=eps, dtype=dtype, stack=stack)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=eps, dtype=dtype, stack=stack)
        for name, (features_in, features_out) in config.linears().items():
            bias = name in ("q_proj", "k_proj", "v_proj")
            linear = Linear(
                features_in, features_out, bias=bias, dtype=dtype, stack=stack, quantize=config.quantize
            )
            setattr(self, name, linear)

    def project(self, names: tuple[str, ...], x: jax.Array, adapters: Adapters | None) -> list[jax.Array]:
        """The outputs of the linears `names`, which read x."""
        linears = [getattr(self, name) for name in names]
        return [linear(x) for linear in linears] if adapters is None else adapters.apply(names, x, linears)

    def heads(self, names: tuple[str, ...], h: jax.Array, adapters: Adapters | None) -> list[jax.Array]:
        return [y.reshape(*h.shape[:2], -1, self.head_dim) for y in self.project(names, h, adapters)]

    def keys_values(self, h: jax.Array, angles, adapters: Adapters | None) -> tuple[jax.Array, jax.Array]:
        k, v = self.heads(("k_proj", "v_proj"), h, adapters)
        return self.rotate_keys(k, angles), v

    def queries(self, h: jax.Array, angles, adapters: Adapters | None) -> jax.Array:
        return self.rotate_queries(self.heads(("q_proj",), h, adapters)[0], angles)

    def queries_keys_values(self, h: jax.Array, angles, adapters: Adapters | None) -> tuple[jax.Array, ...]:
        """(B, T, N, H) and twice (B, T, K, H), rotated."""
        q, k, v = self.heads(("q_proj", "k_proj", "v_proj"), h, adapters)
        return self.rotate_queries(q, angles), self.rotate_keys(k, angles), v

    def rotate_queries(self, q: jax.Array, angles) -> jax.Array:
        return rotate(q, angles)

    def rotate_keys(self, k: jax.Array, angles) -> jax.Array:
        return rotate(k, angles)

    def finish(self, x: jax.Array, attended: jax.Array, adapters: Adapters | None) -> jax.Array:
        """Output projection and MLP, with their residuals; attended is (B, T, N, H)."""
        attended = attended.reshape(*x.shape[:2], -1)
        x = checkpoint_name(x + self.project(("o_proj",), attended, adapters)[0], "middle")
        gate, up = self.project(("gate_proj", "up_proj"), self.post_attention_layernorm(x), adapters)
        gated = jax.nn.silu(checkpoint_name(gate, "gate")) * checkpoint_name(up, "up")
        return x + self.project(("down_proj",), gated, adapters)[0]
