"""What all audio language models have in common: an encoder in front, a decoder behind, clips' rows in
between."""

from typing import ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.distributed.mesh import looked_up
from rrs_jax.models.adapters import Adapters
from rrs_jax.models.audio_encoder import AudioEncoderConfig
from rrs_jax.models.batch import Batch, Trees
from rrs_jax.models.cache import Cache, Store
from rrs_jax.models.decoder import Decoder
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.lora import LoRA, LoRAConfig


class ModelConfig(Protocol):
    """What a model's config has, whatever else it has.

    `audio_token_id` is the id, or are the ids, that stand where a clip's embeddings take the word embeddings'
    places; the prompt format writes as many of them as `MelConfig.token_count` says.
    """

    audio: AudioEncoderConfig
    text: DecoderConfig
    audio_token_id: int | tuple[int, ...]

    @classmethod
    def from_hf(cls, values: dict) -> Self:
        """From the content of config.json. Raises UserError for settings that the model does not compute."""


class AudioLanguageModel(nnx.Module):
    """The frozen model with, in `lora`, what is trained of it (None: nothing).

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
        """`encode_audio` takes mel frames by this multiple; two convolution strides and the pooling make it
        4."""
        return 4

    @property
    def dtype(self):
        """Of the frozen parameters and of the embeddings."""
        return self.language_model.embed_tokens.dtype

    def adapters(self, *, all_layers: bool = False) -> Adapters | None:
        """What is trained, as the decoder computes it: stacked over the layers that carry adapters, or over
        all."""
        if self.lora is None:
            return None
        return self.lora.packed(self.dtype, self.language_model.layer_class.released, all_layers=all_layers)

    def encode_audio(self, input_features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Log-mel (C, M, frames) with valid frames (C,) to (C, A, D); a clip owns its first
        `rrs_jax.inputs.mel.MelConfig.token_count(feature_length)` rows, and nothing of them may depend on the
        other clips or on how far the batch is padded."""
        raise NotImplementedError

    def embed(self, input_ids: jax.Array, audio_index: jax.Array, audio_bank: jax.Array) -> jax.Array:
        """(B, T, D): word embeddings, and the bank's rows where `audio_index` is not -1."""
        words = looked_up(self.language_model.embed_tokens[...], input_ids)
        audio = audio_bank[jnp.maximum(audio_index, 0)].astype(words.dtype)
        return jnp.where(audio_index[..., None] >= 0, audio, words)

    def representations(self, batch: Batch, audio_bank: jax.Array, *, remat: str = "none") -> jax.Array:
        """f(d, t) of equation 6: (B, D) float32, the final-norm hidden state at the last input token."""
        x, start = self._entering(batch, audio_bank)
        return self.language_model.last_hidden_state(
            x, batch.lengths, self.adapters(), start=start, remat=remat
        )

    def hidden_states(self, batch: Batch, audio_bank: jax.Array, *, remat: str = "none") -> jax.Array:
        """(B, T, D) after the final norm."""
        x, start = self._entering(batch, audio_bank)
        return self.language_model.hidden_states(x, batch.lengths, self.adapters(), start=start, remat=remat)

    def states_at(
        self, batch: Batch, audio_bank: jax.Array, positions: jax.Array, *, remat: str = "none"
    ) -> jax.Array:
        """(B, K, D) float32, the final-norm hidden states at `positions` (B, K): what the tokens behind them
        are made of."""
        x, start = self._entering(batch, audio_bank)
        return self.language_model.states_at(
            x, batch.lengths, positions, self.adapters(), start=start, remat=remat
        )

    def layer_states(
        self, batch: Batch, audio_bank: jax.Array, layers: tuple[int, ...], *, remat: str = "none"
    ) -> jax.Array:
        """(B, len(layers), D) float32, the last input token's hidden state behind each of these layers."""
        x = self.embed(batch.input_ids, batch.audio_index, audio_bank)
        return self.language_model.layer_states(x, batch.lengths, layers, self.adapters(), remat=remat)

    def lower_states(
        self,
        trees: Trees,
        audio_bank: jax.Array,
        layers: int,
        *,
        opening: Store | None = None,
        keys_values: bool = False,
    ) -> tuple[jax.Array, Store | None]:
        """(B, T, D), the hidden states behind the first `layers` layers, none of which may carry an adapter;
        with `keys_values` these layers' keys and values (B, T, n, K, H) too; `opening` as in
        `Decoder.lower_states`.
        """
        x = self.embed(trees.input_ids, trees.audio_index, audio_bank)
        inputs = x, trees.positions, trees.branches, trees.lengths
        return self.language_model.lower_states(*inputs, layers, opening=opening, keys_values=keys_values)

    def _entering(self, batch: Batch, audio_bank: jax.Array) -> tuple[jax.Array, int]:
        """What goes into the first layer that is computed, (B, T, D), and that layer's number."""
        if batch.lower_states is not None:
            return batch.lower_states, batch.lower_layers
        return self.embed(batch.input_ids, batch.audio_index, audio_bank), 0

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.language_model.logits(hidden)

    def output_head(self) -> jax.Array:
        return self.language_model.output_head()

    def head_row(self, token_id: int) -> jax.Array:
        return self.language_model.head_row(token_id)

    def prefill(
        self, batch: Batch, audio_bank: jax.Array, cache_dtype=None
    ) -> tuple[jax.Array, jax.Array, Store]:
        """Next-token logits (B, V) of the prompts, the next tokens' positions (B,), and keys and values
        (L, B, K, T, H) of `cache_dtype` (None: the model's). Raises ValueError for a start above the first
        adapter, or without the keys and values below."""
        x, start = self._entering(batch, audio_bank)
        if start and batch.lower_store is None:
            raise ValueError(
                f"a pass that starts at layer {start} has no keys and values of the layers below"
            )
        if self.lora is not None and start > self.lora.config.first_layer:
            raise ValueError(
                f"a pass that starts at layer {start} leaves out layers from"
                f" {self.lora.config.first_layer} on"
            )
        adapters = self.adapters(all_layers=True)
        hidden, store = self.language_model.prefill(
            x, batch.lengths, adapters, cache_dtype, batch.lower_store
        )
        return self.logits(hidden), batch.lengths, store

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
