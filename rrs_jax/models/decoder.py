"""Qwen2 decoder (Yang et al. 2024): grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from rrs_jax.models.adapters import Adapters
from rrs_jax.models.cache import Cache, KeysValues, cached_attention
from rrs_jax.models.decoder_layer import DecoderConfig, DecoderLayer
from rrs_jax.models.decoder_pass import STATES, DecoderInputs, DecoderOutput, Wanted, last_tokens
from rrs_jax.models.fused_attention import fused_attention
from rrs_jax.models.layers import RMSNorm, attention, rotary_angles
from rrs_jax.models.stack import LayerScan, frozen_layer, layer_at, scan_layers


class Decoder(nnx.Module):
    """Embeddings, layers, final norm and head.

    Attributes:
      layers: one layer whose parameters are stacks, or after `set_apart` a list of layers.
      unroll: compile each layer by itself in passes (`rrs_jax.models.stack.LayerScan`).
    """

    layer_class: ClassVar[type[DecoderLayer]] = DecoderLayer

    def __init__(self, config: DecoderConfig, *, dtype):
        self.config, self.unroll = config, False
        self.embed_tokens = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = self.layer_class(config, dtype=dtype, stack=(config.num_hidden_layers,))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))

    def set_apart(self) -> None:
        """Makes each layer a module of its own, with float8 matrices transposed besides: copies of all
        layers, twice their memory. For `unroll` alone; `decode` wants stacks.

        XLA copies an 8-bit matrix out of a stack before it multiplies it, and backward transposes it.
        """
        graphdef, stacks = nnx.split(self.layers)
        apart = [
            nnx.merge(graphdef, layer_at(stacks, index)) for index in range(self.config.num_hidden_layers)
        ]
        for layer in apart:
            for name in self.config.linears():
                getattr(layer, name).transpose_too()
        self.layers, self.unroll = nnx.List(apart), True

    def __call__(
        self,
        inputs: DecoderInputs,
        adapters: Adapters | None,
        wanted: Wanted = STATES,
        *,
        remat: str = "none",
    ) -> DecoderOutput:
        """Runs rows (B, T, D) through the layers and returns the intermediates that are wanted.

        Everything but decoding token by token is this one pass. It is differentiable in the inputs' states
        and in the adapters; layers below the first adapter form a scan of their own, which no backward pass
        reaches.

        Args:
          adapters: stacked over the layers that carry them, up to the last, or over all.
          remat: what the layers with adapters keep for the backward pass
            (`rrs_jax.models.stack.rematerialise`).
        Raises:
          ValueError: a start above the first layer with an adapter.
        """
        stop = self.config.num_hidden_layers if wanted.stop is None else wanted.stop
        whole = stop - 1 if wanted.last_only else stop
        x, (each_layer, keys_values) = self._whole_layers(inputs, adapters, whole, wanted, remat)
        last = self._last_token(x, inputs, whole, adapters) if wanted.last_only else None
        return DecoderOutput(x, last, each_layer, keys_values)

    def _whole_layers(
        self, inputs: DecoderInputs, adapters: Adapters | None, stop: int, wanted: Wanted, remat: str
    ) -> tuple[jax.Array, tuple]:
        """The states (B, T, D) behind the layers from `inputs.start` to `stop`, and what is wanted of each of
        these, stacked."""
        graphdef, stacks = self._split_layers()
        tree, before = inputs.tree, 0 if inputs.prefix is None else inputs.prefix.keys.shape[1]

        def step(x, frozen, adapters, shared):
            layer, prefix = nnx.merge(graphdef, frozen["layer"]), frozen["prefix"]
            angles, mask, lengths = shared
            if adapters is not None and frozen["dropout"] is not None:
                adapters = adapters.replace(dropout=frozen["dropout"])
            q, k, v = layer.queries_keys_values(layer.input_layernorm(x), angles, adapters)
            q, k, v = checkpoint_name(q, "queries"), checkpoint_name(k, "keys"), checkpoint_name(v, "values")
            x = layer.finish(x, _attend(q, k, v, prefix, mask), adapters)
            return x, _read(x, lengths, k, v, wanted)

        if tree is None:
            positions = before + jnp.arange(inputs.states.shape[1])[None]
            angles, mask = self._angles(positions, inputs.lengths + before), None
        else:
            angles, mask = self._angles(tree.positions, inputs.lengths), tree.mask(before)
        shared = angles, mask, inputs.lengths
        # Masks have no derivative, so that they travel with the layers and not with the adapters.
        frozen = {"layer": stacks, "prefix": inputs.prefix, "dropout": inputs.dropout}
        carrying = jax.tree.leaves(adapters)[0].shape[0] if adapters is not None else 0
        start, first = inputs.start, min(self.config.num_hidden_layers - carrying, stop)
        if start > first:
            raise ValueError(f"a pass that starts at layer {start} leaves out layers from {first} on")
        below = LayerScan(step, start, first, remat=remat, unroll=self.unroll)
        above = LayerScan(step, first, stop, remat=remat, unroll=self.unroll)
        x, low = scan_layers(below, inputs.states, frozen, None, shared)
        x, high = scan_layers(above, x, frozen, adapters, shared)
        if start < first < stop:
            return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), low, high)
        return x, low or high or (None, None)

    def _last_token(
        self, x: jax.Array, inputs: DecoderInputs, index: int, adapters: Adapters | None
    ) -> jax.Array:
        """The representation of section 3.1: what goes into layer `index` (B, T, D) to each row's last token
        behind it and the final norm, float32 (B, D).

        Only that one position goes through the layer's query, output projection and MLP.
        """
        graphdef, stacks = self._split_layers()
        layer, lengths = nnx.merge(graphdef, frozen_layer(stacks, index)), inputs.lengths
        at_all = at_last = jax.tree.map(lambda leaf: leaf[-1], adapters)
        if adapters is not None and inputs.dropout is not None:
            dropout = layer_at(inputs.dropout, index)
            at_all = at_all.replace(dropout=dropout)
            at_last = at_last.replace(dropout=dropout.at_last_tokens(lengths))
        last = (lengths - 1)[:, None]
        h = layer.input_layernorm(x)
        k, v = layer.keys_values(h, self._angles(jnp.arange(x.shape[1])[None], lengths), at_all)
        q = layer.queries(last_tokens(h, lengths), self._angles(last, lengths), at_last)
        attended = attention(q, k, v, causal=False, key_lengths=lengths)
        x_last = layer.finish(last_tokens(x, lengths), attended, at_last)
        return self.norm(x_last.astype(jnp.float32))[:, 0]

    def decode(
        self,
        x: jax.Array,
        positions: jax.Array,
        slot: jax.Array,
        cache: Cache,
        adapters: Adapters | None,
        *,
        fused: bool = False,
    ) -> tuple[jax.Array, Cache]:
        """Runs one more token of each row, embeddings (B, D) at `positions` (B,), and writes its keys and
        values into `slot` of the answers' cache; returns its normed states (B, D) and the cache.

        This is no pass of `__call__`, since every layer reads its own part of the cache, and must not copy
        it: the cache is an input of the scan over layers, each layer hands out its new keys and values, and
        all are written at once behind the scan. With `fused`, the GPU kernel of
        `rrs_jax.models.fused_attention` does a layer's attention, and writes into the cache, which the scan
        then carries.
        """
        answers = x.shape[0] // cache.prompt_lengths.shape[0]
        angles = self._angles(positions[:, None], jnp.repeat(cache.prompt_lengths, answers))

        def step(x, layer, adapters, cached):
            # q is (B, 1, H, E), k and v are (B, 1, K, E).
            q, k, v = layer.queries_keys_values(layer.input_layernorm(x), angles, adapters)
            attended = cached_attention(q[:, 0], k[:, 0], v[:, 0], *cached, cache.prompt_lengths, cache.valid)
            return layer.finish(x, attended[:, None], adapters), KeysValues.of(
                k[:, 0], v[:, 0], cache.answers.keys.dtype
            )

        def fused_step(carry, layer, adapters, index):
            x, answers = carry
            q, k, v = layer.queries_keys_values(layer.input_layernorm(x), angles, adapters)
            attended, answers = fused_attention(
                q[:, 0], k[:, 0], v[:, 0], cache.replace(answers=answers), index, slot
            )
            return (layer.finish(x, attended[:, None], adapters), answers), None

        if fused:
            layers = jnp.arange(self.config.num_hidden_layers, dtype=jnp.int32)
            (x, written), _ = self._scan_stack((x[:, None], cache.answers), adapters, fused_step, layers)
            cache = cache.replace(answers=written, valid=cache.with_slot(slot))
        else:
            x, new = self._scan_stack(x[:, None], adapters, step, (cache.prompts, cache.answers))
            cache = cache.write(new, slot)
        return self.norm(x)[:, 0], cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, float32 (..., V), of final-norm states (..., D)."""
        head = self.output_head()
        return jnp.einsum(
            "...D,VD->...V", hidden.astype(head.dtype), head, preferred_element_type=jnp.float32
        )

    def head_row(self, token_id: int) -> jax.Array:
        """The head's weights (D,), float32, for one token: w_40 of equation 1 for "I"."""
        return self.output_head()[token_id].astype(jnp.float32)

    def output_head(self) -> jax.Array:
        """Weights of the output head, (V, D): `lm_head`, or the embeddings where they are tied."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head)[...]

    def angle_kinds(self, lengths: np.ndarray) -> np.ndarray:
        """A number for each prompt length (N,): prompts with the same one are rotated alike at the same
        position."""
        return np.zeros(len(lengths))

    def _split_layers(self):
        """A layer's structure, and the parameters of all layers as `layer_at` takes them."""
        if not isinstance(self.layers, nnx.List):
            return nnx.split(self.layers)
        (graphdef, _), *_ = parts = [nnx.split(layer) for layer in self.layers]
        return graphdef, tuple(state for _, state in parts)

    def _angles(self, positions: jax.Array, prompt_lengths: jax.Array):
        """Angles for `DecoderLayer.queries` and `keys_values` at positions (B, T) or (1, T) of rows whose
        prompts have `prompt_lengths` (B,) tokens."""
        if self.config.mrope_section:
            # Time, height and width: text and audio have the same in all three, only pictures tell them
            # apart.
            positions = jnp.broadcast_to(positions, (3, *positions.shape))
        return rotary_angles(
            positions, self.config.head_dim, self.config.rope_theta, self.config.mrope_section
        )

    def _scan_stack(self, x: jax.Array, adapters: Adapters | None, step, extra=None):
        """Scans `step` over all layers without a backward pass; the stacks and `extra` ones are the scan's
        own inputs."""
        graphdef, stacks = nnx.split(self.layers)

        def body(x, layer):
            layer, adapters, extra = layer
            return step(x, nnx.merge(graphdef, layer), adapters, extra)

        return jax.lax.scan(body, x, (stacks, adapters, extra))


def _attend(q, k, v, prefix: KeysValues | None, mask: jax.Array | None) -> jax.Array:
    """Attention (B, T, H, E) of tokens behind the prefix that all rows begin with; causal without a mask."""
    tokens = q.shape[1]
    if prefix is not None:
        k, v = _behind(prefix.keys, k), _behind(prefix.values, v)
    if mask is None:  # causal attention has a query for each key; the prefix's are of no use
        q = jnp.pad(q, ((0, 0), (k.shape[1] - tokens, 0), (0, 0), (0, 0)))
    return attention(q, k, v, causal=mask is None, mask=mask)[:, -tokens:]


def _behind(prefix: jax.Array, own: jax.Array) -> jax.Array:
    """Keys or values (P, K, E) in front of each row's (B, T, K, E)."""
    return jnp.concatenate([jnp.broadcast_to(prefix, (len(own), *prefix.shape)), own], axis=1)


def _read(
    x: jax.Array, lengths: jax.Array, k: jax.Array, v: jax.Array, wanted: Wanted
) -> tuple[jax.Array | None, KeysValues | None]:
    """The wanted intermediates of one layer: the states behind it, and its keys and values (B, K, T, E)."""
    state = x if wanted.each_layer == "all" else None
    if isinstance(wanted.each_layer, tuple):
        state = last_tokens(x, lengths, wanted.each_layer).astype(jnp.float32)
    if wanted.keys_values is None:
        return state, None
    return state, KeysValues.of(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), wanted.keys_values)
