"""Qwen2-Audio (Chu et al. 2024, arXiv 2407.10759): audio encoder, one linear projector, Qwen2 decoder."""

import dataclasses

import jax

from rrs_jax.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from rrs_jax.models.audio_language_model import AudioLanguageModel
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.hf_config import picked, refuse_what_is_not_computed, with_rotary_base
from rrs_jax.models.layers import Linear
from rrs_jax.models.lora import LoRAConfig


@dataclasses.dataclass(frozen=True)
class Qwen2AudioConfig:
    """Sizes of the model, and the id that stands where a clip's embeddings go."""

    audio: AudioEncoderConfig
    text: DecoderConfig
    audio_token_id: int

    @classmethod
    def from_hf(cls, values: dict) -> "Qwen2AudioConfig":
        """The sizes of a config.json; absent fields have the defaults of the transformers classes, on which
        the released file relies. Raises UserError for settings that are not computed."""
        audio = {
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        } | values.get("audio_config", {})
        text = {
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 151936,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": values.get("tie_word_embeddings", False),
        } | values.get("text_config", {})
        refuse_what_is_not_computed(text, audio)
        return cls(
            audio=picked(AudioEncoderConfig, audio),
            text=picked(DecoderConfig, with_rotary_base(text)),
            audio_token_id=values.get("audio_token_index", values.get("audio_token_id", 151646)),
        )


class Qwen2Audio(AudioLanguageModel):
    """Whisper's encoder, one linear projector, Qwen2 decoder."""

    config_class = Qwen2AudioConfig

    def __init__(self, config: Qwen2AudioConfig, *, dtype, lora: LoRAConfig | None = None):
        super().__init__(config, dtype=dtype, lora=lora)
        self.audio_tower = AudioEncoder(config.audio, dtype=dtype)
        self.multi_modal_projector = Linear(
            config.audio.d_model, config.text.hidden_size, bias=True, dtype=dtype
        )

    def encode_audio(self, input_features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Embeddings (C, A, D) of clips (C, bins, frames); see `AudioLanguageModel.encode_audio`."""
        return self.multi_modal_projector(self.audio_tower(input_features, feature_lengths))


MODEL = Qwen2Audio
