"""Qwen2 decoder (Yang et al. 2024): grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.models.cache import Cache, Store, cached_attention
from rrs_jax.models.layers import Linear, RMSNorm, attention, layer_at, rotary_angles, rotate
from rrs_jax.models.lora import LoRA


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

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name to (in, out) of every linear of a layer."""
        d, f = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (d, queries), "k_proj": (d, keys), "v_proj": (d, keys), "o_proj": (queries, d),
            "gate_proj": (d, f), "up_proj": (d, f), "down_proj": (f, d),
        }  # fmt: skip

    def adapted_linears(self) -> dict[str, tuple[int, int]]:
        """Those that LoRA names: the linears as the released model has them."""
        return self.linears()


class DecoderLayer(nnx.Module):
    """One layer, in pieces, so that the last one can run for one position and decoding can use a cache."""

    def __init__(self, config: DecoderConfig, *, dtype, stack: tuple[int, ...]):
        self.head_dim = config.head_dim
        eps = config.rms_norm_eps
        self.input_layernorm = RMSNorm(config.hidden_size, eps=eps, dtype=dtype, stack=stack)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=eps, dtype=dtype, stack=stack)
        for name, (features_in, features_out) in config.linears().items():
            bias = name in ("q_proj", "k_proj", "v_proj")
            setattr(self, name, Linear(features_in, features_out, bias=bias, dtype=dtype, stack=stack))

    def project(self, name: str, x: jax.Array, lora: LoRA | None) -> jax.Array:
        return getattr(self, name)(x, lora.pair(name) if lora else None)

    def heads(self, name: str, h: jax.Array, lora: LoRA | None) -> jax.Array:
        return self.project(name, h, lora).reshape(*h.shape[:2], -1, self.head_dim)

    def keys_values(self, h: jax.Array, angles, lora: LoRA | None) -> tuple[jax.Array, jax.Array]:
        return rotate(self.heads("k_proj", h, lora), angles), self.heads("v_proj", h, lora)

    def queries(self, h: jax.Array, angles, lora: LoRA | None) -> jax.Array:
        return rotate(self.heads("q_proj", h, lora), angles)

    def finish(self, x: jax.Array, attended: jax.Array, lora: LoRA | None) -> jax.Array:
        """Output projection and MLP, with their residuals; attended is (B, T, N, H)."""
        x = x + self.project("o_proj", attended.reshape(*x.shape[:2], -1), lora)
        h = self.post_attention_layernorm(x)
        gated = jax.nn.silu(self.project("gate_proj", h, lora)) * self.project("up_proj", h, lora)
        return x + self.project("down_proj", gated, lora)


class Decoder(nnx.Module):
    layer_class: ClassVar[type[DecoderLayer]] = DecoderLayer

    def __init__(self, config: DecoderConfig, *, dtype):
        self.config = config
        self.embed_tokens = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = self.layer_class(config, dtype=dtype, stack=(config.num_hidden_layers,))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))

    def hidden_states(self, x: jax.Array, lengths: jax.Array, lora: LoRA | None, *, remat: str = "none") -> jax.Array:
        """(B, T, D) embeddings, right padded, to (B, T, D) after the final norm; garbage past a row's length."""
        x, _ = self._scan(x, lora, remat, self.config.num_hidden_layers, self._full_layer(x, lengths))
        return self.norm(x)

    def states_at(
        self, x: jax.Array, lengths: jax.Array, positions: jax.Array, lora: LoRA | None, *, remat: str = "none"
    ) -> jax.Array:
        """After the final norm at `positions` (B, K) of each row: (B, K, D), float32."""
        x, _ = self._scan(x, lora, remat, self.config.num_hidden_layers, self._full_layer(x, lengths))
        return self.norm(jnp.take_along_axis(x, positions[..., None], axis=1).astype(jnp.float32))

    def layer_states(
        self, x: jax.Array, lengths: jax.Array, layers: tuple[int, ...], lora: LoRA | None, *, remat: str = "none"
    ) -> jax.Array:
        """Each row's last token behind some of the layers, before the final norm: (B, len(layers), D), float32.
        Layers above the highest of them are not computed."""
        last, full = (lengths - 1)[:, None, None], self._full_layer(x, lengths)

        def step(x, layer, pairs, extra):
            x, _ = full(x, layer, pairs, extra)
            return x, jnp.take_along_axis(x, last, axis=1)[:, 0].astype(jnp.float32)

        _, states = self._scan(x, lora, remat, max(layers) + 1, step)  # (L, B, D)
        return jnp.swapaxes(states[jnp.asarray(layers)], 0, 1)

    def layer_outputs(self, x: jax.Array, lengths: jax.Array, lora: LoRA | None) -> jax.Array:
        """The hidden state behind each layer, before the final norm: (L, B, T, D)."""
        full = self._full_layer(x, lengths)

        def step(x, layer, pairs, extra):
            x, _ = full(x, layer, pairs, extra)
            return x, x

        return self._scan(x, lora, "none", self.config.num_hidden_layers, step)[1]

    def last_hidden_state(
        self, x: jax.Array, lengths: jax.Array, lora: LoRA | None, *, remat: str = "none"
    ) -> jax.Array:
        """The representation of section 3.1: (B, D) after the final norm at each row's last token, float32.

        In the last layer only that one position goes through query, output projection and MLP.
        """
        final = self.config.num_hidden_layers - 1
        x, _ = self._scan(x, lora, remat, final, self._full_layer(x, lengths))
        layer, pairs = self._layer_and_lora(lora, final)
        last = (lengths - 1)[:, None]
        x_last = jnp.take_along_axis(x, last[..., None], axis=1)
        h = layer.input_layernorm(x)
        k, v = layer.keys_values(h, self._angles(jnp.arange(x.shape[1])[None], lengths), pairs)
        h_last = jnp.take_along_axis(h, last[..., None], axis=1)
        q = layer.queries(h_last, self._angles(last, lengths), pairs)
        attended = attention(q, k, v, causal=False, key_lengths=lengths)
        x_last = layer.finish(x_last, attended, pairs)
        return self.norm(x_last.astype(jnp.float32))[:, 0]

    def prefill(
        self, x: jax.Array, lengths: jax.Array, lora: LoRA | None, cache_dtype=None
    ) -> tuple[jax.Array, Store]:
        """Runs prompts (B, T, D); returns the last tokens' normed states (B, D) and keys and values (L, B, K, T, H),
        of `cache_dtype` (None: the model's)."""
        angles = self._angles(jnp.arange(x.shape[1])[None], lengths)
        cache_dtype = x.dtype if cache_dtype is None else cache_dtype

        def step(x, layer, pairs, _):
            h = layer.input_layernorm(x)
            k, v = layer.keys_values(h, angles, pairs)
            attended = attention(layer.queries(h, angles, pairs), k, v, causal=True, key_lengths=lengths)
            by_head = Store.of(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), cache_dtype)
            return layer.finish(x, attended, pairs), by_head

        x, store = self._scan_stack(x, lora, step)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
        return self.norm(last)[:, 0], store

    def decode(
        self, x: jax.Array, positions: jax.Array, slot: jax.Array, cache: Cache, lora: LoRA | None
    ) -> tuple[jax.Array, Cache]:
        """One token a row: (B, D) embeddings at `positions` (B,), written into `slot` of the answers' cache.

        The cache is read-only inside the scan over layers; each layer hands out its new row and all rows
        are written at once behind it, so that no layer copies the cache.
        """
        answers = x.shape[0] // cache.prompt_lengths.shape[0]
        angles = self._angles(positions[:, None], jnp.repeat(cache.prompt_lengths, answers))
        cache_dtype = cache.answers.keys.dtype

        def step(x, layer, pairs, cached):
            h = layer.input_layernorm(x)
            k, v = layer.keys_values(h, angles, pairs)  # (B, 1, K, H)
            q = layer.queries(h, angles, pairs)
            attended = cached_attention(q[:, 0], k[:, 0], v[:, 0], *cached, cache.prompt_lengths, cache.valid)
            return layer.finish(x, attended[:, None], pairs), Store.of(k[:, 0], v[:, 0], cache_dtype)

        x, new = self._scan_stack(x[:, None], lora, step, (cache.prompts, cache.answers))
        return self.norm(x)[:, 0], cache.write(new, slot)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) normed states to float32 (..., V)."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return jnp.einsum("...D,VD->...V", hidden.astype(head.dtype), head[...], preferred_element_type=jnp.float32)

    def head_row(self, token_id: int) -> jax.Array:
        """The head's weights (D,), float32, for one token: w_40 of equation 1 for "I"."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return head[...][token_id].astype(jnp.float32)

    def _angles(self, positions: jax.Array, prompt_lengths: jax.Array):
        """What `DecoderLayer.queries` and `keys_values` rotate by at positions (B, T) or (1, T) of rows whose prompts
        have `prompt_lengths` (B,) tokens."""
        if self.config.mrope_section:
            # Time, height and width: text and audio have the same in all three, only pictures tell them apart.
            positions = jnp.broadcast_to(positions, (3, *positions.shape))
        return rotary_angles(positions, self.config.head_dim, self.config.rope_theta, self.config.mrope_section)

    def _full_layer(self, x: jax.Array, lengths: jax.Array):
        angles = self._angles(jnp.arange(x.shape[1])[None], lengths)

        def step(x, layer, pairs, _):
            h = layer.input_layernorm(x)
            k, v = layer.keys_values(h, angles, pairs)
            attended = attention(layer.queries(h, angles, pairs), k, v, causal=True, key_lengths=lengths)
            return layer.finish(x, attended, pairs), None

        return step

    def _layer_and_lora(self, lora: LoRA | None, index: int):
        layer = layer_at(*nnx.split(self.layers), index)
        if lora is None:
            return layer, None
        return layer, layer_at(*nnx.split(lora), index - lora.config.first_layer)

    def _scan(self, x: jax.Array, lora: LoRA | None, remat: str, stop: int, step):
        """Scans `step(x, layer, lora_of_layer, None)` over layers 0 to `stop`.

        Layers below the first adapter form a scan of their own, so that no backward pass reaches them.
        """
        graphdef, state = nnx.split(self.layers)
        first = stop if lora is None else min(lora.config.first_layer, stop)
        x, low = self._scan_range(x, 0, first, lambda x, i: step(x, layer_at(graphdef, state, i), None, None))
        if first == stop:
            return x, low
        lora_graphdef, lora_state = nnx.split(lora)

        def body(x, i):
            pairs = layer_at(lora_graphdef, lora_state, i - first)
            return step(x, layer_at(graphdef, state, i), pairs, None)

        x, high = self._scan_range(x, first, stop, rematerialise(body, remat))
        if first == 0:
            return x, high
        return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), low, high)

    def _scan_stack(self, x: jax.Array, lora: LoRA | None, step, extra=None):
        """As `_scan` over all layers, without a backward pass; the adapters, if any, are `LoRA.fixed`.

        The stacks are the scan's own inputs: in this form XLA can give a matrix product the layer's weights where
        they lie (see `generate.engine`), while it copies what is cut out of a stack by an index of ours.
        """
        graphdef, state = nnx.split(self.layers)
        lora_graphdef, lora_state = (None, None) if lora is None else nnx.split(lora)

        def body(x, layer):
            state, lora_state, extra = layer
            pairs = None if lora_state is None else nnx.merge(lora_graphdef, lora_state)
            return step(x, nnx.merge(graphdef, state), pairs, extra)

        return jax.lax.scan(body, x, (state, lora_state, extra))

    @staticmethod
    def _scan_range(x, start: int, stop: int, body):
        if start == stop:
            return x, None
        return jax.lax.scan(body, x, jnp.arange(start, stop))


def rematerialise(body, remat: str):
    """What the forward pass keeps for the backward pass.

    `none`: every intermediate but the layer's frozen weights, which are read again from their stack
    (kept, they would be a second copy of the model); `dots`: results of matrix products; `full`: the
    layer's input alone.
    """
    policies = jax.checkpoint_policies
    policy = {
        "none": _anything_but_slices,
        "dots": policies.dots_with_no_batch_dims_saveable,
        "full": policies.nothing_saveable,
    }[remat]
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def _anything_but_slices(primitive, *_, **__) -> bool:
    """A layer's weights are the only values cut out of a larger array by the layer's index. Both steps of the
    cut must be refused: a saved result of either is as large as the weight."""
    return primitive.name not in ("dynamic_slice", "squeeze")
