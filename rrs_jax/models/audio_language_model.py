"""The common part of all audio language models: an encoder in front, a decoder behind, clips' rows in
between."""

from typing import ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.distributed.mesh import looked_up
from rrs_jax.models.adapters import Adapters
from rrs_jax.models.audio_encoder import AudioEncoderConfig
from rrs_jax.models.batch import Batch, TreeBatch
from rrs_jax.models.cache import Cache, KeysValues
from rrs_jax.models.decoder import Decoder
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.decoder_pass import STATES, DecoderInputs, DecoderOutput, TreeLayout, Wanted, last_tokens
from rrs_jax.models.lora import LoRA, LoRAConfig


class ModelConfig(Protocol):
    """Fields that every model's config has.

    `audio_token_id` is the id, or are the ids, that stand where a clip's embeddings take the word embeddings'
    places; the prompt format writes as many of them as `MelConfig.token_count` says.
    """

    audio: AudioEncoderConfig
    text: DecoderConfig
    audio_token_id: int | tuple[int, ...]

    @classmethod
    def from_hf(cls, values: dict) -> Self:
        """The config of a config.json's content. Raises UserError for settings that the model does not
        compute."""


class AudioLanguageModel(nnx.Module):
    """A frozen model, and in `lora` its trained adapters (None: no adapters).

    Frozen parameters have the given dtype; LoRA is float32. A model of its own adds its encoder in `__init__`
    and `encode_audio`.
    """

    config_class: ClassVar[type[ModelConfig]]
    decoder_class: ClassVar[type[Decoder]] = Decoder

    def __init__(self, config: ModelConfig, *, dtype, lora: LoRAConfig | None = None):
        self.config = config
        self.language_model = self.decoder_class(config.text, dtype=dtype)
        self.lora = LoRA(lora, config.text.adapted_linears(), config.text.num_hidden_layers) if lora else None

    @property
    def frame_multiple(self) -> int:
        """Mel frames of which `encode_audio` takes multiples: two convolution strides and the pooling make it
        4."""
        return 4

    @property
    def dtype(self):
        """Dtype of the frozen parameters and of the embeddings."""
        return self.language_model.embed_tokens.dtype

    def adapters(self, *, all_layers: bool = False) -> Adapters | None:
        """The trained adapters as the decoder computes them, stacked over the layers that carry them, or over
        all; None without."""
        if self.lora is None:
            return None
        return self.lora.packed(self.dtype, self.language_model.layer_class.released, all_layers=all_layers)

    def without_adapters(self) -> Self:
        """The model before training, its arrays shared."""
        frozen = nnx.merge(*nnx.split(self))
        frozen.lora = None
        return frozen

    def encode_audio(self, input_features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Embeddings (C, A, D) of log-mel (C, bins, frames) with valid frames (C,).

        A clip owns its first `rrs_jax.inputs.mel.MelConfig.token_count(feature_length)` rows, and nothing of
        them may depend on the other clips or on how far the batch is padded.
        """
        raise NotImplementedError

    def embed(self, input_ids: jax.Array, audio_index: jax.Array, audio_bank: jax.Array) -> jax.Array:
        """Word embeddings (B, T, D), and the bank's rows where `audio_index` is not -1."""
        words = looked_up(self.language_model.embed_tokens[...], input_ids)
        audio = audio_bank[jnp.maximum(audio_index, 0)].astype(words.dtype)
        return jnp.where(audio_index[..., None] >= 0, audio, words)

    def __call__(
        self, batch: Batch, audio_bank: jax.Array, wanted: Wanted = STATES, *, remat: str = "none"
    ) -> DecoderOutput:
        """The decoder's pass over prompts (`Decoder.__call__`), from the lower layers' states if the batch
        has them, with the adapters' dropout if it has a key for it."""
        inputs, adapters = self._inputs(batch, audio_bank), self.adapters()
        if batch.dropout_key is not None and self.lora is not None and self.lora.config.dropout:
            released = self.language_model.layer_class.released
            shape = self.config.text.num_hidden_layers, *inputs.states.shape[:2]
            adapters = self.lora.packed(self.dtype, released, kept=1 - self.lora.config.dropout)
            inputs = inputs.replace(dropout=self.lora.draw_dropout(batch.dropout_key, released, shape))
        return self.language_model(inputs, adapters, wanted, remat=remat)

    def representations(self, batch: Batch, audio_bank: jax.Array, *, remat: str = "none") -> jax.Array:
        """f(d, t) of equation 6: float32 (B, D), the final-norm hidden state at the last input token."""
        return self(batch, audio_bank, Wanted(last_only=True), remat=remat).last

    def hidden_states(self, batch: Batch, audio_bank: jax.Array, *, remat: str = "none") -> jax.Array:
        """Hidden states after the final norm, (B, T, D); garbage past a row's length."""
        return self.language_model.norm(self(batch, audio_bank, remat=remat).states)

    def states_at(
        self, batch: Batch, audio_bank: jax.Array, positions: jax.Array, *, remat: str = "none"
    ) -> jax.Array:
        """Final-norm hidden states at `positions` (B, J), float32 (B, J, D): what the tokens behind them are
        made of."""
        states = self(batch, audio_bank, remat=remat).states
        chosen = jnp.take_along_axis(states, positions[..., None], axis=1)
        return self.language_model.norm(chosen.astype(jnp.float32))

    def layer_states(
        self, batch: Batch, audio_bank: jax.Array, layers: tuple[int, ...], *, remat: str = "none"
    ) -> jax.Array:
        """The last input token's hidden state behind each of these layers, before the final norm: float32
        (B, len(layers), D). Layers above the highest of them are not computed."""
        batch = batch.replace(lower_states=None)  # which may lie above these layers
        wanted = Wanted(stop=max(layers) + 1, each_layer=(0,))
        states = self(batch, audio_bank, wanted, remat=remat).each_layer
        return jnp.swapaxes(states[jnp.asarray(layers), :, 0], 0, 1)

    def lower_states(
        self,
        trees: TreeBatch,
        audio_bank: jax.Array,
        layers: int,
        *,
        prefix: KeysValues | None = None,
        keys_values: bool = False,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Hidden states behind the first `layers` layers, (B, T, D), without adapters; with `keys_values`
        these layers' keys and values (B, T, L, K, E) too.

        `prefix`: keys and values (L, P, K, E) of tokens that stand before all trees.
        """
        x = self.embed(trees.input_ids, trees.audio_index, audio_bank)
        inputs = DecoderInputs(
            x, trees.lengths, tree=TreeLayout(trees.positions, trees.branches), prefix=prefix
        )
        wanted = Wanted(stop=layers, keys_values=x.dtype if keys_values else None)
        output = self.language_model(inputs, None, wanted)
        by_token = jax.tree.map(lambda leaf: jnp.transpose(leaf, (1, 3, 0, 2, 4)), output.keys_values)
        return output.states, by_token

    def _inputs(self, batch: Batch, audio_bank: jax.Array) -> DecoderInputs:
        """Inputs of the first layer that is computed."""
        if batch.lower_states is not None:
            return DecoderInputs(batch.lower_states, batch.lengths, start=batch.lower_layers)
        return DecoderInputs(self.embed(batch.input_ids, batch.audio_index, audio_bank), batch.lengths)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, float32 (..., V), of final-norm states (..., D)."""
        return self.language_model.logits(hidden)

    def output_head(self) -> jax.Array:
        """Weights of the output head (V, D), the embeddings' where they are tied."""
        return self.language_model.output_head()

    def head_row(self, token_id: int) -> jax.Array:
        """One token's row of the output head, float32 (D,)."""
        return self.language_model.head_row(token_id)

    def prefill(
        self, batch: Batch, audio_bank: jax.Array, cache_dtype=None
    ) -> tuple[jax.Array, jax.Array, KeysValues]:
        """Next-token logits (B, V) of the prompts, the next tokens' positions (B,), and keys and values
        (L, B, K, T, E) of `cache_dtype` (None: the model's).

        Raises ValueError for a start above the first adapter, or without the keys and values below.
        """
        inputs, lower = self._inputs(batch, audio_bank), batch.lower_keys_values
        if inputs.start and lower is None:
            raise ValueError(
                f"a pass that starts at layer {inputs.start} has no keys and values of the layers below"
            )
        cache_dtype = inputs.states.dtype if cache_dtype is None else cache_dtype
        # Adapters in all layers where all are computed, as in `decode`, so that prompts and answers round
        # alike.
        adapters = self.adapters(all_layers=inputs.start == 0)
        output = self.language_model(inputs, adapters, Wanted(keys_values=cache_dtype))
        kept = output.keys_values
        if lower is not None:
            lower = jax.tree.map(lambda leaf: jnp.transpose(leaf, (2, 0, 3, 1, 4)), lower)
            lower = KeysValues.of(lower.keys, lower.values, cache_dtype)
            kept = jax.tree.map(lambda *parts: jnp.concatenate(parts), lower, kept)
        hidden = self.language_model.norm(last_tokens(output.states, batch.lengths))[:, 0]
        return self.logits(hidden), batch.lengths, kept

    def decode(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        slot: jax.Array,
        cache: Cache,
        adapters: Adapters | None = None,
        *,
        fused: bool = False,
    ) -> tuple[jax.Array, Cache]:
        """Next-token logits (B, V) behind `tokens` (B,) at `positions` (B,), kept in `slot` of the answers'
        cache. `adapters` are `self.adapters(all_layers=True)`, made once for all steps; `fused` as in
        `Decoder.decode`.
        """
        x = self.language_model.embed_tokens[...][tokens]
        hidden, cache = self.language_model.decode(x, positions, slot, cache, adapters, fused=fused)
        return self.logits(hidden), cache
