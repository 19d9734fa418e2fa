"""Small synthetic files of the mini's two parts, with every kind of quantisation."""

import struct
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from helpers.tensors import randomise
from rrs_jax.mini import base
from rrs_jax.mini.ctranslate2_reader import CTranslate2Encoder
from rrs_jax.mini.gguf_reader import GGUFDecoder

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "s y", "sy s", "' s", "Ċ Ċ", "Ã ©"]
TEXTS = ["I", "the system's 12\n\n the", "Café, don't\t", "Cafe\u0301", "x  the<|im_end|>\n", "日本語 🙂 ﬁ"]
FIRST_SPECIAL = 256 + len(
    MERGES
)  # 151643 in the real file; the other special tokens follow it in the same order
VOCAB_SIZE = 288
LAYERS, WIDTH, HEADS, KV_HEADS, MLP = 2, 64, 4, 2, 96
QUANTISATION = {
    "q_proj": "Q5_0",
    "k_proj": "Q4_0",
    "v_proj": "Q8_0",
    "o_proj": "F16",
    "gate_proj": "Q5_1",
    "up_proj": "F32",
    "down_proj": "Q8_0",
}
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def byte_tokens() -> list[str]:
    return sorted(bytes_to_unicode().values())


def vocabulary() -> list[str]:
    return byte_tokens() + [merge.replace(" ", "") for merge in MERGES]


def small_decoder() -> transformers.Qwen2ForCausalLM:
    """Returns a random Qwen2 whose sizes are those of the files."""
    torch_model = (
        transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(
                vocab_size=VOCAB_SIZE,
                hidden_size=WIDTH,
                intermediate_size=MLP,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=KV_HEADS,
                max_position_embeddings=256,
                rms_norm_eps=1e-6,
                rope_theta=1e6,
                tie_word_embeddings=True,
                bos_token_id=FIRST_SPECIAL,
                eos_token_id=FIRST_SPECIAL + 2,
            )
        )
        .float()
        .eval()
    )
    randomise(torch_model)
    return torch_model


def small_encoder() -> WhisperEncoder:
    """Returns a random Whisper encoder of float16 values."""
    torch_model = (
        WhisperEncoder(
            transformers.WhisperConfig(
                d_model=48,
                encoder_layers=2,
                encoder_attention_heads=3,
                encoder_ffn_dim=80,
                num_mel_bins=12,
                max_source_positions=50,
                vocab_size=8,
                pad_token_id=0,
                decoder_start_token_id=1,
            )
        )
        .float()
        .eval()
    )
    randomise(torch_model, seed=1)
    return torch_model.half().float()  # the file holds float16


def write_files(folder: Path, decoder, encoder) -> None:
    """Writes qwen.gguf, whose dequantised values `decoder` then holds, and whisper.bin."""
    write_gguf(folder / "qwen.gguf", decoder)
    write_ctranslate2(folder / "whisper.bin", encoder)


def write_gguf(path: Path, torch_model: transformers.Qwen2ForCausalLM) -> None:
    """Writes the model quantised, each kind of matrix otherwise, and puts the quantised values back into
    it."""
    config = torch_model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    normal = vocabulary()
    unused = VOCAB_SIZE - len(normal) - len(SPECIAL)
    writer.add_token_list(normal + SPECIAL + [f"[PAD{i}]" for i in range(unused)])
    writer.add_token_types([1] * len(normal) + [3] * 5 + [4] + [5] * unused)
    writer.add_token_merges(MERGES)
    for name, parameter in torch_model.state_dict().items():
        if name == "lm_head.weight":
            continue
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            coarse = gguf.quants.quantize(parameter.numpy(), gguf.GGMLQuantizationType.Q5_0)
            writer.add_tensor("token_embd.weight", coarse, raw_dtype=gguf.GGMLQuantizationType.Q5_0)
            target, kind = "output.weight", "Q8_0"
        elif name == "model.norm.weight":
            target, kind = "output_norm.weight", "F32"
        else:
            target = f"blk.{parts[2]}.{GGUF_NAMES['.'.join(parts[3:-1])]}.{parts[-1]}"
            kind = QUANTISATION.get(parts[-2], "F32") if parts[-1] == "weight" else "F32"
        kind = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(parameter.numpy(), kind)
        writer.add_tensor(target, data, raw_dtype=kind)
        parameter.copy_(torch.from_numpy(dequantised(data, kind, parameter.shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantised(data: np.ndarray, kind: gguf.GGMLQuantizationType, shape) -> np.ndarray:
    """Q8_0 by its definition (32 integers behind a float16 scale), the other kinds by the gguf package."""
    if kind != gguf.GGMLQuantizationType.Q8_0:
        return gguf.quants.dequantize(data, kind).reshape(shape).copy()
    blocks = data.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (scale * blocks[:, 2:].view(np.int8)).reshape(shape)


def write_ctranslate2(path: Path, torch_model: WhisperEncoder) -> None:
    state = {name: value.numpy().astype(np.float16) for name, value in torch_model.state_dict().items()}
    arrays = {
        "decoder/scale": np.float16(0.5),
        "encoder/num_heads": np.int16(torch_model.config.encoder_attention_heads),
        "encoder/position_encodings/encodings": state["embed_positions.weight"],
    }
    for name in ("conv1", "conv2"):
        arrays |= {f"encoder/{name}/{kind}": state[f"{name}.{kind}"] for kind in ("weight", "bias")}
    norms = {"encoder/layer_norm": "layer_norm"}
    for i in range(torch_model.config.encoder_layers):
        theirs, ours = f"encoder/layer_{i}", f"layers.{i}"
        norms[f"{theirs}/self_attention/layer_norm"] = f"{ours}.self_attn_layer_norm"
        norms[f"{theirs}/ffn/layer_norm"] = f"{ours}.final_layer_norm"
        for kind in ("weight", "bias"):
            fused = [state.get(f"{ours}.self_attn.{n}_proj.{kind}", np.zeros(48, np.float16)) for n in "qkv"]
            arrays[f"{theirs}/self_attention/linear_0/{kind}"] = np.concatenate(fused)
            arrays[f"{theirs}/self_attention/linear_1/{kind}"] = state[f"{ours}.self_attn.out_proj.{kind}"]
            arrays[f"{theirs}/ffn/linear_0/{kind}"] = state[f"{ours}.fc1.{kind}"]
            arrays[f"{theirs}/ffn/linear_1/{kind}"] = state[f"{ours}.fc2.{kind}"]
    for theirs, ours in norms.items():
        arrays |= {f"{theirs}/gamma": state[f"{ours}.weight"], f"{theirs}/beta": state[f"{ours}.bias"]}
    path.write_bytes(ctranslate2_bytes(arrays))


def ctranslate2_bytes(arrays: dict[str, np.ndarray], version: int = 6) -> bytes:
    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", version), string("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        array = np.asarray(array)
        kind = {"int16": 2, "float16": 4}[array.dtype.name]
        parts += [
            string(name),
            struct.pack("<B", array.ndim),
            struct.pack(f"<{array.ndim}I", *array.shape),
            struct.pack("<BI", kind, array.nbytes),
            array.tobytes(),
        ]
    return b"".join([*parts, struct.pack("<I", 1), string("decoder/alias"), string("decoder/scale")])


def convert(files: Path, folder: Path) -> Path:
    """Converts the two files to a base folder and returns it."""
    decoder, encoder = GGUFDecoder(files / "qwen.gguf"), CTranslate2Encoder(files / "whisper.bin")
    base.convert(decoder, encoder, folder, {"source": "index"})
    return folder
