"""A small random Qwen2-Audio folder with every size odd or unequal."""

from pathlib import Path

import numpy as np

from rrs_jax.files import write_json
from rrs_jax.testing.tensors import random_tensors, tensors_of, write_shards
from rrs_jax.testing.tokenizer import write_tokenizer


def small_values(**text) -> dict:
    """Returns the content of config.json; `text` overrides fields of the decoder."""
    decoder = {
        "model_type": "qwen2",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 136,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 1000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | text
    encoder = {
        "model_type": "qwen2_audio_encoder",
        "d_model": 24,
        "encoder_layers": 2,
        "encoder_attention_heads": 3,
        "encoder_ffn_dim": 40,
        "num_mel_bins": 12,
        "max_source_positions": 1500,
    }
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_config": encoder,
        "text_config": decoder,
        "audio_token_index": 130,
        "tie_word_embeddings": decoder["tie_word_embeddings"],
    }


def write_feature_extractor(folder: Path, bins: int, seconds: int) -> None:
    """Writes preprocessor_config.json of a Whisper feature extractor for clips of so many seconds."""
    features: dict[str, object] = {
        "feature_size": bins,
        "sampling_rate": 16_000,
        "n_fft": 400,
        "hop_length": 160,
    }
    features |= {
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": seconds,
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    write_json(
        folder / "preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor"} | features
    )


def write_qwen2_audio(folder: str | Path, *, seed: int = 0, **text) -> dict[str, np.ndarray]:
    """Writes a whole folder as it is published: weights, tokenizer, feature extractor, generation settings.

    Args:
      folder: created where it does not exist.
      seed: of the weights.
      text: fields of the decoder's config that differ from `small_values`, such as `num_hidden_layers=5`.

    Returns:
      The tensors as they lie on disk, name to float32 array.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    values = small_values(**{"vocab_size": tokenizer.get_vocab_size() + 8} | text)
    values["audio_config"]["num_mel_bins"] = 80
    values["audio_token_index"] = tokenizer.token_to_id("<|AUDIO|>")
    write_json(folder / "config.json", values)
    generation: dict[str, object] = {"do_sample": True, "temperature": 0.7, "top_k": 20}
    generation |= {"eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    generation |= {"pad_token_id": tokenizer.token_to_id("<|endoftext|>")}
    write_json(folder / "generation_config.json", generation)
    write_feature_extractor(folder, 80, 30)
    tensors = random_tensors({name: shape for name, _, shape in tensors_of(values, "float32")}, seed)
    write_shards(folder, tensors)
    return tensors
