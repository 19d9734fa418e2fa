"""A small random Qwen2.5-Omni folder with every size odd or unequal: the whole model or its thinker."""

import pickle
from pathlib import Path

import numpy as np

from rrs_jax.files import write_json
from rrs_jax.testing.qwen2_audio import write_feature_extractor
from rrs_jax.testing.tensors import random_tensors, tensors_of, write_shards
from rrs_jax.testing.tokenizer import write_tokenizer

AUDIO = 130


def small_thinker_values(**text) -> dict:
    """Returns the thinker's config: windows of 2 * 10 frames, three rotary sections of unequal width.

    `text` overrides fields of the decoder.
    """
    decoder = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 140,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [1, 2, 3]},
    } | text
    encoder = {
        "d_model": 24,
        "encoder_layers": 2,
        "encoder_attention_heads": 3,
        "encoder_ffn_dim": 40,
        "num_mel_bins": 12,
        "n_window": 10,
        "output_dim": decoder["hidden_size"],
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_heads": 2,
        "out_hidden_size": decoder["hidden_size"],
        "fullatt_block_indexes": [0],
    }
    tokens = ["image_token_index", "video_token_index", "audio_start_token_id", "audio_end_token_id"]
    tokens += ["vision_start_token_id", "vision_end_token_id"]
    return {
        "audio_config": encoder,
        "text_config": decoder,
        "vision_config": vision,
        "audio_token_index": AUDIO,
        "pad_token_id": 0,
        "tie_word_embeddings": decoder["tie_word_embeddings"],
    } | {name: AUDIO + 1 + i for i, name in enumerate(tokens)}


def vision_shapes(vision: dict) -> dict[str, tuple[int, ...]]:
    """Returns the vision tower's tensors, name to shape; no forward pass of audio and text uses them."""
    width, hidden, out = (vision[name] for name in ("hidden_size", "intermediate_size", "out_hidden_size"))
    merged = 4 * width  # a square of four patches becomes one vector
    shapes = {
        "patch_embed.proj.weight": (width, 3, 2, 14, 14),
        "merger.ln_q.weight": (width,),
        "merger.mlp.0.weight": (merged, merged),
        "merger.mlp.0.bias": (merged,),
        "merger.mlp.2.weight": (out, merged),
        "merger.mlp.2.bias": (out,),
    }
    for i in range(vision["depth"]):
        block = f"blocks.{i}."
        linears = {f"attn.{name}": (width, width) for name in ("q", "k", "v", "proj")}
        linears |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width)}
        linears |= {"mlp.down_proj": (width, hidden)}
        shapes |= {f"{block}norm1.weight": (width,), f"{block}norm2.weight": (width,)}
        for name, shape in linears.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return shapes


def write_speakers(file: Path) -> None:
    """Writes spk_dict.pt, without which transformers' class of the whole model does not load.

    The one speaker has no voice. The format is that of `torch.save` before torch 1.6, which is plain pickles:
    a magic number, the format's version, the writer's system, the object, and the names of its storages.
    """
    parts: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"Chelsie": {}}, [])
    file.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


def write_qwen2_5_omni(
    folder: str | Path, *, thinker: bool = False, seed: int = 0, **text
) -> dict[str, np.ndarray]:
    """Writes a whole folder: weights, tokenizer and feature extractor.

    Args:
      folder: created where it does not exist.
      thinker: the folder of the thinker alone; else that of the whole model without its speech output
        (`enable_audio_output` is false, so that there is no talker and no vocoder).
      seed: of the weights.
      text: fields of the decoder's config that differ from `small_thinker_values`.

    Returns:
      The tensors as they lie on disk, name to float32 array.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    size = tokenizer.get_vocab_size()
    values = small_thinker_values(**{"vocab_size": size + 8} | text)
    values["audio_config"]["num_mel_bins"] = 80
    for field, token in (
        ("audio_token_index", "<|AUDIO|>"),
        ("audio_start_token_id", "<|audio_bos|>"),
        ("audio_end_token_id", "<|audio_eos|>"),
    ):
        values[field] = tokenizer.token_to_id(token)
    absent = ("image_token_index", "video_token_index", "vision_start_token_id", "vision_end_token_id")
    values |= {field: size + i for i, field in enumerate(absent)}
    values |= {"model_type": "qwen2_5_omni_thinker"}
    architecture = "Qwen2_5OmniThinkerForConditionalGeneration"
    vision, output, prefix = values["vision_config"], values["audio_config"]["output_dim"], ""
    if not thinker:
        values = {"model_type": "qwen2_5_omni", "thinker_config": values, "enable_audio_output": False}
        architecture, prefix = "Qwen2_5OmniForConditionalGeneration", "thinker."
        write_speakers(folder / "spk_dict.pt")
    values["architectures"] = [architecture]
    write_json(folder / "config.json", values)
    write_json(folder / "generation_config.json", {})
    write_feature_extractor(folder, 80, 300)
    shapes = {name: shape for name, _, shape in tensors_of(values, "float32")}
    shapes |= {f"{prefix}visual.{name}": shape for name, shape in vision_shapes(vision).items()}
    shapes[f"{prefix}audio_tower.audio_bos_eos_token.weight"] = (2, output)
    tensors = random_tensors(shapes, seed)
    write_shards(folder, tensors)
    return tensors
