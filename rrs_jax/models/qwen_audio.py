"""Qwen-Audio-Chat (Chu et al. 2023, arXiv 2311.07919): Whisper's encoder, a projection, the first Qwen
decoder.

Departures from the released code, which a run within its limits does not notice:

- A clip is encoded as if it stood alone. The released encoder cuts the mel of all clips at the longest one's
  end, so that it sees zeros behind that clip's last frame and silence behind the others'; a clip's last
  vectors depend on its neighbours. Alone is how the released `chat` hears a question, and the only reading
  under which a clip has one embedding.
- Dynamic NTK and log-n attention act in training too, so that the trained model is the one that answers. They
  begin behind `seq_length` positions, which no prompt of 30 seconds reaches.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.errors import UserError
from rrs_jax.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from rrs_jax.models.audio_language_model import AudioLanguageModel
from rrs_jax.models.layers import Linear
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.qwen_decoder import QwenDecoder, QwenDecoderConfig

POSITIONS = 1500  # of the encoder, 30 seconds


@dataclasses.dataclass(frozen=True)
class QwenAudioConfig:
    """Sizes of the model; `audio_token_id`: the start marker, the token that is repeated, and the end marker,
    all of which the encoder fills."""

    audio: AudioEncoderConfig
    text: QwenDecoderConfig
    audio_token_id: tuple[int, int, int]

    @classmethod
    def from_hf(cls, values: dict) -> "QwenAudioConfig":
        """The sizes of a config.json; absent fields have the defaults of the released configuration class.
        Raises UserError for settings that are not computed."""
        audio = {
            "n_mels": 80,
            "n_ctx": POSITIONS,
            "n_state": 1280,
            "n_head": 20,
            "n_layer": 32,
            "avg_pool": True,
            "add_audio_bos_eos_token": True,
            "audio_start_id": 155163,
        } | values["audio"]
        text = {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "intermediate_size": 22016,
            "layer_norm_epsilon": 1e-6,
            "kv_channels": 128,
            "rotary_emb_base": 10000,
            "seq_length": 2048,
            "use_dynamic_ntk": True,
            "use_logn_attn": True,
            "tie_word_embeddings": False,
        } | values
        _refuse_what_is_not_computed(text, audio)
        heads, start = text["num_attention_heads"], audio["audio_start_id"]
        return cls(
            audio=AudioEncoderConfig(
                d_model=audio["n_state"],
                encoder_layers=audio["n_layer"],
                encoder_attention_heads=audio["n_head"],
                encoder_ffn_dim=4 * audio["n_state"],
                num_mel_bins=audio["n_mels"],
                max_source_positions=audio["n_ctx"],
            ),
            text=QwenDecoderConfig(
                hidden_size=text["hidden_size"],
                intermediate_size=text["intermediate_size"] // 2,  # of w1 and of w2
                num_hidden_layers=text["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=heads,
                head_dim=text["kv_channels"],
                vocab_size=text["vocab_size"],
                rms_norm_eps=text["layer_norm_epsilon"],
                rope_theta=float(text["rotary_emb_base"]),
                tie_word_embeddings=text["tie_word_embeddings"],
                seq_length=text["seq_length"],
                use_dynamic_ntk=text["use_dynamic_ntk"],
                use_logn_attn=text["use_logn_attn"],
            ),
            audio_token_id=(start, start - REPEATED_BEFORE_START, start + 1),
        )


# The tokenizer numbers its special tokens in a fixed order: the repeated one begins those of audio, the two
# markers end them.
REPEATED_BEFORE_START = 3312


def _refuse_what_is_not_computed(text: dict, audio: dict) -> None:
    """Raises UserError for settings under which the released code computes something else than this file
    does."""
    width = text["kv_channels"] * text["num_attention_heads"]
    wanted = {
        "no_bias": (text.get("no_bias", True), True),
        "rotary_pct": (float(text.get("rotary_pct", 1.0)), 1.0),
        "scale_attn_weights": (text.get("scale_attn_weights", True), True),
        "use_cache_quantization": (bool(text.get("use_cache_quantization")), False),
        "kv_channels × num_attention_heads": (width, text["hidden_size"]),
        "audio.avg_pool": (audio["avg_pool"], True),
        "audio.add_audio_bos_eos_token": (audio["add_audio_bos_eos_token"], True),
        "audio.n_ctx": (audio["n_ctx"], POSITIONS),
        "audio.output_dim": (audio.get("output_dim", text["hidden_size"]), text["hidden_size"]),
    }
    wrong = [
        f"{name} is {value!r} in place of {only!r}" for name, (value, only) in wanted.items() if value != only
    ]
    if wrong:
        raise UserError(
            f"config.json: {'; '.join(wrong)}, which is not supported; use a model of the released settings."
        )


class QwenAudio(AudioLanguageModel):
    """Whisper's encoder, a projection with vectors of its own for a clip's start and end, Qwen decoder."""

    config_class = QwenAudioConfig
    decoder_class = QwenDecoder

    def __init__(self, config: QwenAudioConfig, *, dtype, lora: LoRAConfig | None = None):
        super().__init__(config, dtype=dtype, lora=lora)
        width = config.text.hidden_size
        self.audio_tower = AudioEncoder(config.audio, dtype=dtype)
        self.proj = Linear(config.audio.d_model, width, bias=True, dtype=dtype)
        self.audio_bos_eos_token = nnx.Param(jnp.zeros((2, width), dtype))

    def encode_audio(self, input_features: jax.Array, feature_lengths: jax.Array) -> jax.Array:
        """Embeddings (C, frames // 4 + 2, D) of clips (C, bins, frames): the vector of a clip's start, its
        own ones, and behind them that of its end."""
        positions = (feature_lengths + 1) // 2  # behind the second convolution
        # The released encoder cuts here: the first convolution sees zeros, where silence is not zero.
        inside = jnp.arange(input_features.shape[2]) < 2 * positions[:, None]
        clips = self.proj(self.audio_tower(jnp.where(inside[:, None], input_features, 0), feature_lengths))
        start, end = self.audio_bos_eos_token[...]
        rows = jnp.pad(clips, ((0, 0), (1, 1), (0, 0))).at[:, 0].set(start)
        is_end = jnp.arange(rows.shape[1]) == positions[:, None] // 2 + 1
        return jnp.where(is_end[..., None], end, rows)


MODEL = QwenAudio
