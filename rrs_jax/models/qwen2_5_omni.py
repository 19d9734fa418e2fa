"""The thinker of Qwen2.5-Omni (Xu et al. 2025, arXiv 2503.20215), which hears and writes: an audio encoder of
separate two-second windows, and a Qwen2.5 decoder with TMRoPE.

What sees (visual) and speaks (talker, token2wav) is not computed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.models.audio_encoder import AudioEncoderConfig, Convolution, EncoderLayer
from rrs_jax.models.audio_language_model import AudioLanguageModel
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.hf_config import picked, refuse_what_is_not_computed, with_rotary_base
from rrs_jax.models.layers import LayerNorm, Linear, gelu
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.stack import LayerScan, scan_layers

POSITION_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class OmniEncoderConfig(AudioEncoderConfig):
    """Sizes of the windowed encoder; `n_window`: positions of a window, half as many as its mel frames."""

    n_window: int
    output_dim: int


@dataclasses.dataclass(frozen=True)
class OmniConfig:
    """Sizes of the thinker, and the id that stands where a clip's embeddings go."""

    audio: OmniEncoderConfig
    text: DecoderConfig
    audio_token_id: int

    @classmethod
    def from_hf(cls, values: dict) -> "OmniConfig":
        """The sizes of a config.json, of the whole model or of the thinker alone; absent fields have the
        defaults of the transformers classes. Raises UserError for settings that are not computed."""
        values = values.get("thinker_config", values)
        audio = {
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
            "n_window": 100,
            "output_dim": 3584,
        } | values.get("audio_config", {})
        text = {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": values.get("tie_word_embeddings", False),
        } | values.get("text_config", {})
        refuse_what_is_not_computed(text, audio, rope_types=("default", "mrope"))
        rotary = text.get("rope_scaling") or text.get("rope_parameters") or {}
        text["mrope_section"] = tuple(rotary.get("mrope_section", (16, 24, 24)))
        return cls(
            audio=picked(OmniEncoderConfig, audio),
            text=picked(DecoderConfig, with_rotary_base(text)),
            audio_token_id=values.get("audio_token_index", values.get("audio_token_id", 151646)),
        )


class WindowedAudioEncoder(nnx.Module):
    """Log-mel features to embeddings, 25 a second. Windows know nothing of each other: each is convolved with
    zeros at its edges, counts its positions from 0 and attends to itself alone."""

    def __init__(self, config: OmniEncoderConfig, *, dtype):
        self.config = config
        d = config.d_model
        self.conv1 = Convolution(config.num_mel_bins, d, stride=1, dtype=dtype)
        self.conv2 = Convolution(d, d, stride=2, dtype=dtype)
        self.layers = EncoderLayer(config, dtype=dtype, stack=(config.encoder_layers,))
        self.ln_post = LayerNorm(d, dtype=dtype)
        self.proj = Linear(d, config.output_dim, bias=True, dtype=dtype)

    def __call__(self, input_features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Embeddings (C, frames // 4, output_dim) of log-mel (C, bins, frames) with valid frames (C,); frames
        is a multiple of 4 and of the window's."""
        clips, bins, frames = input_features.shape
        width = 2 * self.config.n_window
        windows = jnp.swapaxes(input_features, 1, 2).reshape(-1, width, bins).astype(self.conv1.kernel.dtype)
        left = feature_lengths[:, None] - jnp.arange(0, frames, width)[None]
        lengths = jnp.clip(left, 0, width).reshape(-1)
        real = (jnp.arange(width)[None] < lengths[:, None])[..., None]
        x = jnp.where(real, windows, 0)
        x = jnp.where(real, gelu(self.conv1(x)), 0)
        x = gelu(self.conv2(x))
        x = x + jnp.asarray(sinusoids(self.config.n_window, self.config.d_model), x.dtype)
        # A window behind the clip's end has no key; one is left it, since a softmax over none is no number.
        keys = jnp.maximum((lengths + 1) // 2, 1)
        graphdef, stacks = nnx.split(self.layers)

        def step(x, layer, _, keys):
            return nnx.merge(graphdef, layer)(x, keys), None

        x, _ = scan_layers(LayerScan(step, 0, self.config.encoder_layers), x, stacks, None, keys)
        # Only a clip's last window is short, so its positions lie side by side.
        x = x.reshape(clips, frames // 4, 2, -1).mean(axis=2)
        return self.proj(self.ln_post(x))


def sinusoids(positions: int, width: int) -> np.ndarray:
    """Whisper's position table, float32 (positions, width): sines, then cosines, of falling frequencies."""
    frequencies = np.exp(-math.log(POSITION_BASE) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(positions)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class OmniThinker(AudioLanguageModel):
    """The thinker: windowed audio encoder and Qwen2.5 decoder."""

    config_class = OmniConfig

    def __init__(self, config: OmniConfig, *, dtype, lora: LoRAConfig | None = None):
        super().__init__(config, dtype=dtype, lora=lora)
        self.audio_tower = WindowedAudioEncoder(config.audio, dtype=dtype)

    @property
    def frame_multiple(self) -> int:
        """Mel frames of which `encode_audio` takes multiples: whole windows."""
        return math.lcm(super().frame_multiple, 2 * self.config.audio.n_window)

    def encode_audio(self, input_features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Embeddings (C, A, D) of clips (C, bins, frames); see `AudioLanguageModel.encode_audio`."""
        return self.audio_tower(input_features, feature_lengths)


MODEL = OmniThinker
