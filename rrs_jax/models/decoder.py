"""Qwen2 decoder (Yang et al. 2024): grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from rrs_jax.models.adapters import Adapters
from rrs_jax.models.cache import Cache, Store, cached_attention
from rrs_jax.models.decoder_layer import DecoderConfig, DecoderLayer
from rrs_jax.models.fused_attention import fused_attention
from rrs_jax.models.layers import RMSNorm, attention, rotary_angles
from rrs_jax.models.stack import frozen_layer, layer_at, scan_layers


class Decoder(nnx.Module):
    """`unroll`: compile each layer by itself where whole layers are run (`rrs_jax.models.stack.scan_layers`).

    `layers` is one layer whose parameters are stacks, or after `set_apart` a list of layers.
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
        layers, twice their memory. For `unroll` alone; `prefill` and `decode` want stacks.

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

    def _split_layers(self):
        """The structure of a layer, and the parameters of all as `layer_at` takes them."""
        if not isinstance(self.layers, nnx.List):
            return nnx.split(self.layers)
        (graphdef, _), *_ = parts = [nnx.split(layer) for layer in self.layers]
        return graphdef, tuple(state for _, state in parts)

    def hidden_states(
        self,
        x: jax.Array,
        lengths: jax.Array,
        adapters: Adapters | None,
        *,
        start: int = 0,
        remat: str = "none",
    ) -> jax.Array:
        """What goes into layer `start`, for 0 the embeddings, (B, T, D) and right padded, to (B, T, D) after
        the final norm; garbage past a row's length."""
        return self.norm(
            self._scan(x, lengths, adapters, self.config.num_hidden_layers, start=start, remat=remat)[0]
        )

    def states_at(
        self,
        x: jax.Array,
        lengths: jax.Array,
        positions: jax.Array,
        adapters: Adapters | None,
        *,
        start: int = 0,
        remat: str = "none",
    ) -> jax.Array:
        """After the final norm at `positions` (B, K) of each row: (B, K, D), float32; `start` as in
        `hidden_states`."""
        x, _ = self._scan(x, lengths, adapters, self.config.num_hidden_layers, start=start, remat=remat)
        return self.norm(jnp.take_along_axis(x, positions[..., None], axis=1).astype(jnp.float32))

    def layer_states(
        self,
        x: jax.Array,
        lengths: jax.Array,
        layers: tuple[int, ...],
        adapters: Adapters | None,
        *,
        remat: str = "none",
    ) -> jax.Array:
        """Each row's last token behind some of the layers, before the final norm: (B, len(layers), D),
        float32. Layers above the highest of them are not computed."""
        _, states = self._scan(x, lengths, adapters, max(layers) + 1, _last_tokens, remat=remat)  # (L, B, D)
        return jnp.swapaxes(states[jnp.asarray(layers)], 0, 1)

    def layer_outputs(self, x: jax.Array, lengths: jax.Array, adapters: Adapters | None) -> jax.Array:
        """The hidden state behind each layer, before the final norm: (L, B, T, D)."""
        return self._scan(x, lengths, adapters, self.config.num_hidden_layers, lambda x, _: x)[1]

    def lower_states(
        self,
        x: jax.Array,
        positions: jax.Array,
        branches: jax.Array,
        lengths: jax.Array,
        stop: int,
        *,
        opening: Store | None = None,
        keys_values: bool = False,
    ) -> tuple[jax.Array, Store | None]:
        """Embeddings (B, T, D) of trees to the hidden states behind the layers below `stop`, (B, T, D),
        without a backward pass or adapters; with `keys_values` these layers' keys and values (B, T, n, K, H)
        too. `opening`: keys and values (n, P, K, H) of tokens that stand before all trees. The other
        arguments are as in `rrs_jax.models.batch.Trees`."""
        graphdef, stacks = nnx.split(self.layers)

        def behind(before, own):
            return jnp.concatenate([jnp.broadcast_to(before, (len(own), *before.shape)), own], axis=1)

        def step(x, layer, _, shared):
            (layer, before), (angles, seen) = layer.values(), shared
            layer = nnx.merge(graphdef, layer)
            q, k, v = layer.queries_keys_values(layer.input_layernorm(x), angles, None)
            kept = Store(k, v) if keys_values else None
            if before is not None:
                k, v = behind(before.keys, k), behind(before.values, v)
            return layer.finish(x, attention(q, k, v, causal=False, mask=seen), None), kept

        order = jnp.arange(x.shape[1])
        seen = (branches[:, None] == 0) | (branches[:, None] == branches[..., None])  # (B, T, S)
        seen = (seen & (order <= order[:, None]))[:, None]
        if opening is not None:
            seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (opening.keys.shape[1], 0)), constant_values=True)
        shared, frozen = (self._angles(positions, lengths), seen), {"layer": stacks, "opening": opening}
        x, store = scan_layers(step, x, shared, frozen, None, 0, stop)
        return x, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), store)

    def angle_kinds(self, lengths: np.ndarray) -> np.ndarray:
        """Of prompts with so many tokens, (N,): those of one kind are rotated alike at the same position."""
        return np.zeros(len(lengths))

    def last_hidden_state(
        self,
        x: jax.Array,
        lengths: jax.Array,
        adapters: Adapters | None,
        *,
        start: int = 0,
        remat: str = "none",
    ) -> jax.Array:
        """The representation of section 3.1: (B, D) after the final norm at each row's last token, float32;
        `start` as in `hidden_states`.

        In the last layer only that one position goes through query, output projection and MLP.
        """
        final = self.config.num_hidden_layers - 1
        x, _ = self._scan(x, lengths, adapters, final, start=start, remat=remat)
        graphdef, stacks = self._split_layers()
        layer = nnx.merge(graphdef, frozen_layer(stacks, final))
        adapters = jax.tree.map(lambda leaf: leaf[-1], adapters)
        last = (lengths - 1)[:, None]
        x_last = jnp.take_along_axis(x, last[..., None], axis=1)
        h = layer.input_layernorm(x)
        k, v = layer.keys_values(h, self._angles(jnp.arange(x.shape[1])[None], lengths), adapters)
        h_last = jnp.take_along_axis(h, last[..., None], axis=1)
        q = layer.queries(h_last, self._angles(last, lengths), adapters)
        attended = attention(q, k, v, causal=False, key_lengths=lengths)
        x_last = layer.finish(x_last, attended, adapters)
        return self.norm(x_last.astype(jnp.float32))[:, 0]

    def prefill(
        self,
        x: jax.Array,
        lengths: jax.Array,
        adapters: Adapters | None,
        cache_dtype=None,
        below: Store | None = None,
    ) -> tuple[jax.Array, Store]:
        """Runs prompts (B, T, D); returns the last tokens' normed states (B, D) and keys and values (L, B, K,
        T, H), of `cache_dtype` (None: the model's). The adapters are stacked over all layers, as in `decode`.
        `below`: keys and values (B, T, n, K, H) of the first layers, where x is what goes into layer n."""
        shared = self._angles(jnp.arange(x.shape[1])[None], lengths), lengths
        cache_dtype = x.dtype if cache_dtype is None else cache_dtype

        def step(x, layer, adapters, shared):
            angles, lengths = shared
            q, k, v = layer.queries_keys_values(layer.input_layernorm(x), angles, adapters)
            attended = attention(q, k, v, causal=True, key_lengths=lengths)
            by_head = Store.of(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), cache_dtype)
            return layer.finish(x, attended, adapters), by_head

        if below is None:
            x, store = self._scan_stack(
                x, adapters, lambda x, layer, adapters, _: step(x, layer, adapters, shared)
            )
        else:
            x, store = self._scan_above(x, shared, adapters, step, below.keys.shape[2])
            lower = jax.tree.map(lambda leaf: jnp.transpose(leaf, (2, 0, 3, 1, 4)), below)
            lower = Store.of(lower.keys, lower.values, cache_dtype)
            store = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), lower, store)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
        return self.norm(last)[:, 0], store

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
        """One token a row: (B, D) embeddings at `positions` (B,), written into `slot` of the answers' cache.
        `fused`: attention by the GPU kernel of `rrs_jax.models.fused_attention`.

        Without it the cache is read-only inside the scan over layers; each layer hands out its new row and
        all rows are written at once behind it, so that no layer copies the cache. The kernel writes its
        layer's row itself.
        """
        answers = x.shape[0] // cache.prompt_lengths.shape[0]
        angles = self._angles(positions[:, None], jnp.repeat(cache.prompt_lengths, answers))

        def step(x, layer, adapters, cached):
            q, k, v = layer.queries_keys_values(
                layer.input_layernorm(x), angles, adapters
            )  # k, v: (B, 1, K, H)
            attended = cached_attention(q[:, 0], k[:, 0], v[:, 0], *cached, cache.prompt_lengths, cache.valid)
            return layer.finish(x, attended[:, None], adapters), Store.of(
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
        """(..., D) normed states to float32 (..., V)."""
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

    def _angles(self, positions: jax.Array, prompt_lengths: jax.Array):
        """What `DecoderLayer.queries` and `keys_values` rotate by at positions (B, T) or (1, T) of rows whose
        prompts have `prompt_lengths` (B,) tokens."""
        if self.config.mrope_section:
            # Time, height and width: text and audio have the same in all three, only pictures tell them
            # apart.
            positions = jnp.broadcast_to(positions, (3, *positions.shape))
        return rotary_angles(
            positions, self.config.head_dim, self.config.rope_theta, self.config.mrope_section
        )

    def _scan(
        self,
        x: jax.Array,
        lengths: jax.Array,
        adapters: Adapters | None,
        stop: int,
        read=None,
        *,
        start: int = 0,
        remat: str = "none",
    ):
        """Whole layers from `start` to `stop`: the hidden state (B, T, D) and, stacked, `read(x, lengths)`
        behind each.

        Layers below the first adapter form a scan of their own, so that no backward pass reaches them. Raises
        ValueError for a start above it.
        """
        graphdef, stacks = self._split_layers()

        def step(x, layer, adapters, shared):
            layer, (angles, lengths) = nnx.merge(graphdef, layer), shared
            q, k, v = layer.queries_keys_values(layer.input_layernorm(x), angles, adapters)
            q, k, v = checkpoint_name(q, "queries"), checkpoint_name(k, "keys"), checkpoint_name(v, "values")
            attended = attention(q, k, v, causal=True, key_lengths=lengths)
            x = layer.finish(x, attended, adapters)
            return x, read(x, lengths) if read else None

        shared = (self._angles(jnp.arange(x.shape[1])[None], lengths), lengths)
        carrying = jax.tree.leaves(adapters)[0].shape[0] if adapters is not None else 0
        first = min(self.config.num_hidden_layers - carrying, stop)
        if start > first:
            raise ValueError(f"a pass that starts at layer {start} leaves out layers from {first} on")
        x, low = scan_layers(step, x, shared, stacks, None, start, first, unroll=self.unroll)
        x, high = scan_layers(step, x, shared, stacks, adapters, first, stop, remat=remat, unroll=self.unroll)
        if start < first < stop:
            return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), low, high)
        return x, high if first == start else low

    def _scan_stack(self, x: jax.Array, adapters: Adapters | None, step, extra=None):
        """All layers, without a backward pass: the stacks, and `extra` ones, are the scan's own inputs."""
        graphdef, stacks = nnx.split(self.layers)

        def body(x, layer):
            layer, adapters, extra = layer
            return step(x, nnx.merge(graphdef, layer), adapters, extra)

        return jax.lax.scan(body, x, (stacks, adapters, extra))

    def _scan_above(self, x: jax.Array, shared, adapters: Adapters | None, step, start: int):
        """Layers from `start` on, without a backward pass: cut out of the stacks one by one, since a slice of
        the stacks would be a copy of their weights."""
        graphdef, stacks = nnx.split(self.layers)

        def one(x, layer, adapters, shared):
            return step(x, nnx.merge(graphdef, layer), adapters, shared)

        adapters = jax.tree.map(lambda leaf: leaf[start:], adapters)
        return scan_layers(one, x, shared, stacks, adapters, start, self.config.num_hidden_layers)


def _last_tokens(x: jax.Array, lengths: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0].astype(jnp.float32)
