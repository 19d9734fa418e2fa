"""config.json of the released models, as far as it decides shapes: for benchmarks and checks without a
folder.

From copies of the files in public code and notes (the decoder of Omni-3B from one third party alone), not
from the released folders themselves.
"""

QWEN2_AUDIO = {
    "model_type": "qwen2_audio",
    "audio_config": {},
    "text_config": {
        "intermediate_size": 11008,
        "vocab_size": 156032,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}


def _omni(**text) -> dict:
    width = text.get("hidden_size", 3584)
    rotary = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    thinker = {
        "audio_config": {"output_dim": width},
        "vision_config": {"hidden_size": 1280, "out_hidden_size": width},
        "text_config": {"tie_word_embeddings": False, "rope_scaling": rotary, **text},
    }
    return {"model_type": "qwen2_5_omni", "thinker_config": thinker}


QWEN_AUDIO = {
    "model_type": "qwen",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "intermediate_size": 22016,
    "vocab_size": 155947,
    "layer_norm_epsilon": 1e-5,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 2048,
    "max_position_embeddings": 8192,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "no_bias": True,
    "tie_word_embeddings": False,
    "audio": {
        "n_mels": 80,
        "n_ctx": 1500,
        "n_state": 1280,
        "n_head": 20,
        "n_layer": 32,
        "output_dim": 4096,
        "avg_pool": True,
        "add_audio_bos_eos_token": True,
        "audio_start_id": 155163,
    },
}

RELEASED = {
    "qwen2-audio": QWEN2_AUDIO,
    "omni-7b": _omni(),
    "omni-3b": _omni(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
    ),
    "qwen-audio": QWEN_AUDIO,
}
