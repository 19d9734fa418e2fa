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
    """Sizes of a decoder, under the names of its config.json."""

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
        """Sizes (in, out) of every linear of a layer by name."""
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
        """Sizes (in, out) of the linears that LoRA names, as the released model has them, by name."""
        return self.linears()


class DecoderLayer(nnx.Module):
    """One layer in pieces, so that the last one can run for one position and decoding can use a cache.

    Attributes:
      released: for each linear its name in `DecoderConfig.adapted_linears`, and which third of the outputs it
        is where the released linear computes three.
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
        """Outputs of the linears `names`, which read x."""
        linears = [getattr(self, name) for name in names]
        return [linear(x) for linear in linears] if adapters is None else adapters.apply(names, x, linears)

    def heads(self, names: tuple[str, ...], h: jax.Array, adapters: Adapters | None) -> list[jax.Array]:
        """Outputs of the linears `names`, cut into heads, (B, T, heads, E) each."""
        return [y.reshape(*h.shape[:2], -1, self.head_dim) for y in self.project(names, h, adapters)]

    def keys_values(self, h: jax.Array, angles, adapters: Adapters | None) -> tuple[jax.Array, jax.Array]:
        """Rotated keys, and values, (B, T, K, E) each."""
        k, v = self.heads(("k_proj", "v_proj"), h, adapters)
        return self.rotate_keys(k, angles), v

    def queries(self, h: jax.Array, angles, adapters: Adapters | None) -> jax.Array:
        """Rotated queries (B, T, H, E)."""
        return self.rotate_queries(self.heads(("q_proj",), h, adapters)[0], angles)

    def queries_keys_values(self, h: jax.Array, angles, adapters: Adapters | None) -> tuple[jax.Array, ...]:
        """Queries (B, T, H, E), keys and values (B, T, K, E) of h (B, T, D), the first two rotated."""
        q, k, v = self.heads(("q_proj", "k_proj", "v_proj"), h, adapters)
        return self.rotate_queries(q, angles), self.rotate_keys(k, angles), v

    def rotate_queries(self, q: jax.Array, angles) -> jax.Array:
        """Queries turned by the angles of their positions; an architecture with others overrides this."""
        return rotate(q, angles)

    def rotate_keys(self, k: jax.Array, angles) -> jax.Array:
        """Keys turned by the angles of their positions."""
        return rotate(k, angles)

    def finish(self, x: jax.Array, attended: jax.Array, adapters: Adapters | None) -> jax.Array:
        """The layer's output (B, T, D): output projection of `attended` (B, T, H, E) and MLP, with their
        residuals."""
        attended = attended.reshape(*x.shape[:2], -1)
        x = checkpoint_name(x + self.project(("o_proj",), attended, adapters)[0], "middle")
        gate, up = self.project(("gate_proj", "up_proj"), self.post_attention_layernorm(x), adapters)
        gated = jax.nn.silu(checkpoint_name(gate, "gate")) * checkpoint_name(up, "up")
        return x + self.project(("down_proj",), gated, adapters)[0]
