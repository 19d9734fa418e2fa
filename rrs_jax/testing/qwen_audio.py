"""A small random Qwen-Audio-Chat folder in the released layout, with every size odd or unequal."""

import base64
from pathlib import Path

import numpy as np

from rrs_jax.files import write_json
from rrs_jax.inputs.qwen_tokenizer import special_tokens
from rrs_jax.testing.tensors import random_tensors, write_shards

# Each is the sum of two earlier ones or of bytes, as byte-pair encoding wants it.
MERGES = (
    b"us",
    b"er",
    b"user",
    b"in",
    b"th",
    b"the",
    b" t",
    b" the",
    b"\n\n",
    b"io",
    b"Au",
    b"di",
    b"Audi",
    b"Audio",
)
RANKS = 256 + len(MERGES)
PAD, START, END = (
    RANKS + special_tokens().index(token) for token in ("[[[AUDIO:modality]]]", "<audio>", "</audio>")
)


def small_values(**changes) -> dict:
    """Returns the content of config.json, `changes` included.

    The trained length is 16, so that dynamic NTK and log-n act in short prompts.
    """
    audio = dict(
        n_mels=80,
        n_ctx=1500,
        n_state=24,
        n_head=3,
        n_layer=2,
        output_dim=48,
        avg_pool=True,
        add_audio_bos_eos_token=True,
        audio_start_id=START,
    )
    return (
        dict(
            architectures=["QWenLMHeadModel"],
            auto_map={"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
            model_type="qwen",
            audio=audio,
            hidden_size=48,
            intermediate_size=2 * 72,
            num_hidden_layers=3,
            num_attention_heads=6,
            kv_channels=8,
            vocab_size=END + 9,
            layer_norm_epsilon=1e-5,
            rotary_emb_base=1000,
            rotary_pct=1.0,
            seq_length=16,
            use_dynamic_ntk=True,
            use_logn_attn=True,
            no_bias=True,
            fp32=True,
            scale_attn_weights=True,
            tie_word_embeddings=False,
        )
        | changes
    )


def shapes(values: dict) -> dict[str, tuple[int, ...]]:
    """Returns every tensor's name and shape, as the released code and not our weight table has them."""
    d, f, audio = values["hidden_size"], values["intermediate_size"] // 2, values["audio"]
    s, tower = audio["n_state"], "transformer.audio."
    result = {
        "transformer.wte.weight": (values["vocab_size"], d),
        "lm_head.weight": (values["vocab_size"], d),
        "transformer.ln_f.weight": (d,),
    }
    for i in range(values["num_hidden_layers"]):
        block = {
            "ln_1.weight": (d,),
            "ln_2.weight": (d,),
            "attn.c_attn.weight": (3 * d, d),
            "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d),
            "mlp.w1.weight": (f, d),
            "mlp.w2.weight": (f, d),
            "mlp.c_proj.weight": (d, f),
        }
        result |= {f"transformer.h.{i}.{name}": shape for name, shape in block.items()}
    result |= {
        tower + "positional_embedding": (audio["n_ctx"], s),
        tower + "conv1.weight": (s, audio["n_mels"], 3),
        tower + "conv1.bias": (s,),
        tower + "conv2.weight": (s, s, 3),
        tower + "conv2.bias": (s,),
        tower + "ln_post.weight": (s,),
        tower + "ln_post.bias": (s,),
        tower + "proj.weight": (d, s),
        tower + "proj.bias": (d,),
        tower + "audio_bos_eos_token.weight": (2, d),
    }
    for i in range(audio["n_layer"]):
        block = {
            "attn.key.weight": (s, s),
            "mlp.0.weight": (4 * s, s),
            "mlp.0.bias": (4 * s,),
            "mlp.2.weight": (s, 4 * s),
            "mlp.2.bias": (s,),
        }
        block |= {f"attn.{name}.weight": (s, s) for name in ("query", "value", "out")}
        block |= {f"attn.{name}.bias": (s,) for name in ("query", "value", "out")}
        block |= {f"{name}.{part}": (s,) for name in ("attn_ln", "mlp_ln") for part in ("weight", "bias")}
        result |= {f"{tower}blocks.{i}.{name}": shape for name, shape in block.items()}
    return result


def write_tiktoken(file: Path) -> None:
    """Writes qwen.tiktoken: the 256 bytes and `MERGES`, each with its rank."""
    tokens = [bytes([i]) for i in range(256)] + list(MERGES)
    file.write_text(
        "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    )


def write_qwen_audio(
    folder: str | Path, *, dtype=np.float32, seed: int = 0, **changes
) -> dict[str, np.ndarray]:
    """Writes a whole folder as it is published: weights, tokenizer, generation settings.

    Args:
      folder: created where it does not exist.
      dtype: of the tensors on disk.
      seed: of the weights.
      changes: fields of config.json that differ from `small_values`.

    Returns:
      The tensors as they lie on disk, name to array of `dtype`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = small_values(**changes)
    tensors = {name: array.astype(dtype) for name, array in random_tensors(shapes(values), seed).items()}
    if values["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    write_json(folder / "config.json", values)
    write_shards(folder, tensors)
    write_tiktoken(folder / "qwen.tiktoken")
    generation = {
        "chat_format": "chatml",
        "eos_token_id": RANKS,
        "pad_token_id": RANKS,
        "max_window_size": 6144,
        "max_new_tokens": 512,
        "do_sample": True,
        "top_k": 0,
        "top_p": 0.5,
    }
    write_json(folder / "generation_config.json", generation)
    for name in ("modeling_qwen.py", "mel_filters.npz"):
        (folder / name).write_text("what the released folder has beside the weights")
    return tensors
