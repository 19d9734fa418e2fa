"""Qwen2-Audio (Chu et al. 2024, arXiv 2407.10759): audio encoder, one linear projector, Qwen2 decoder."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.errors import UserError
from rrs_jax.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from rrs_jax.models.batch import Batch
from rrs_jax.models.cache import Cache, Store
from rrs_jax.models.decoder import Decoder, DecoderConfig
from rrs_jax.models.layers import Linear
from rrs_jax.models.lora import LoRA, LoRAConfig


@dataclasses.dataclass(frozen=True)
class Qwen2AudioConfig:
    audio: AudioEncoderConfig
    text: DecoderConfig
    audio_token_id: int

    @classmethod
    def from_hf(cls, values: dict) -> "Qwen2AudioConfig":
        """From the folder's config.json; absent fields have the defaults of the transformers classes,
        on which the released file relies."""
        audio = {
            "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
            "num_mel_bins": 128, "max_source_positions": 1500,
        } | values.get("audio_config", {})  # fmt: skip
        text = {
            "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": values.get("tie_word_embeddings", False),
        } | values.get("text_config", {})  # fmt: skip
        _refuse_what_is_not_computed(text, audio)
        # transformers 5 writes the rotary base one level deeper.
        text["rope_theta"] = (text.get("rope_parameters") or {}).get("rope_theta", text["rope_theta"])
        text["head_dim"] = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return cls(
            audio=AudioEncoderConfig(**{field.name: audio[field.name] for field in dataclasses.fields(AudioEncoderConfig)}),
            text=DecoderConfig(**{field.name: text[field.name] for field in dataclasses.fields(DecoderConfig)}),
            audio_token_id=values.get("audio_token_index", values.get("audio_token_id", 151646)),
        )


def _refuse_what_is_not_computed(text: dict, audio: dict) -> None:
    """Raises UserError for settings under which transformers computes something else than this file does."""
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    wanted = {
        "text_config.hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "text_config.use_sliding_window": (bool(text.get("use_sliding_window")), False),
        "text_config.rope_scaling": (scaling.get("rope_type", scaling.get("type", "default")), "default"),
        "audio_config.activation_function": (audio.get("activation_function", "gelu"), "gelu"),
        "audio_config.scale_embedding": (bool(audio.get("scale_embedding")), False),
    }
    wrong = [f"{name} is {value!r} in place of {only!r}" for name, (value, only) in wanted.items() if value != only]
    if wrong:
        raise UserError(f"config.json: {'; '.join(wrong)}, which is not supported; use a model of the released settings.")


class Qwen2Audio(nnx.Module):
    """The frozen model with, in `lora`, what is trained of it (None: nothing).

    Frozen parameters have the given dtype; LoRA is float32.
    """

    def __init__(self, config: Qwen2AudioConfig, *, dtype, lora: LoRAConfig | None = None):
        self.config = config
        self.audio_tower = AudioEncoder(config.audio, dtype=dtype)
        self.multi_modal_projector = Linear(config.audio.d_model, config.text.hidden_size, bias=True, dtype=dtype)
        self.language_model = Decoder(config.text, dtype=dtype)
        self.lora = LoRA(lora, config.text.linears(), config.text.num_hidden_layers) if lora else None

    def encode_audio(self, input_features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Log-mel (C, M, frames) with valid frames (C,) to (C, A, D); a clip owns its first
        `rrs_jax.inputs.mel.audio_token_count(feature_length)` rows."""
        return self.multi_modal_projector(self.audio_tower(input_features, feature_lengths))

    def embed(self, input_ids: jax.Array, audio_index: jax.Array, audio_bank: jax.Array) -> jax.Array:
        """(B, T, D): word embeddings, and the bank's rows where `audio_index` is not -1."""
        words = self.language_model.embed_tokens[...][input_ids]
        audio = audio_bank[jnp.maximum(audio_index, 0)].astype(words.dtype)
        return jnp.where(audio_index[..., None] >= 0, audio, words)

    def representations(self, batch: Batch, audio_bank: jax.Array, *, remat: str = "none") -> jax.Array:
        """f(d, t) of equation 6: (B, D) float32, the final-norm hidden state at the last input token."""
        x = self.embed(batch.input_ids, batch.audio_index, audio_bank)
        return self.language_model.last_hidden_state(x, batch.lengths, self.lora, remat=remat)

    def hidden_states(self, batch: Batch, audio_bank: jax.Array, *, remat: str = "none") -> jax.Array:
        """(B, T, D) after the final norm."""
        x = self.embed(batch.input_ids, batch.audio_index, audio_bank)
        return self.language_model.hidden_states(x, batch.lengths, self.lora, remat=remat)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.language_model.logits(hidden)

    def head_row(self, token_id: int) -> jax.Array:
        return self.language_model.head_row(token_id)

    def prefill(self, batch: Batch, audio_bank: jax.Array, cache_dtype=None) -> tuple[jax.Array, jax.Array, Store]:
        """Next-token logits (B, V) of the prompts, the next tokens' positions (B,), and keys and values
        (L, B, K, T, H) of `cache_dtype` (None: the model's)."""
        x = self.embed(batch.input_ids, batch.audio_index, audio_bank)
        hidden, store = self.language_model.prefill(x, batch.lengths, self._fixed_lora(x.dtype), cache_dtype)
        return self.logits(hidden), batch.lengths, store

    def decode(
        self, tokens: jax.Array, positions: jax.Array, slot: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Next-token logits (B, V) behind `tokens` (B,) at `positions` (B,), kept in `slot` of the answers' cache."""
        x = self.language_model.embed_tokens[...][tokens]
        hidden, cache = self.language_model.decode(x, positions, slot, cache, self._fixed_lora(x.dtype))
        return self.logits(hidden), cache

    def _fixed_lora(self, dtype) -> LoRA | None:
        return None if self.lora is None else self.lora.fixed(dtype)
