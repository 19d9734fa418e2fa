"""What readers say of files that somebody made to mislead them; tests/faults draws many more at random."""

import gzip
import hashlib
import io
import json
import struct
import time

import numpy as np
import pytest
import soundfile
from transformers.models.qwen2_audio.processing_qwen2_audio import Qwen2AudioProcessor

from rrs_jax.data.tables import read_rows
from rrs_jax.errors import UserError
from rrs_jax.files import JSONFault, parse_json, read_json, reading
from rrs_jax.inputs import chat_template
from rrs_jax.inputs.audio import MAX_SECONDS, check_audios, read_audio
from rrs_jax.inputs.chat_template import KNOWN
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini.gguf_bounds import check_bounds
from rrs_jax.mini.tokenizer import CHAT_TEMPLATE
from rrs_jax.testing import write_qwen2_audio
from rrs_jax.weights.load import abstract_model, read_config
from rrs_jax.weights.safetensors_io import read_folder, read_header


@pytest.mark.parametrize(
    "text, said",
    [
        ("[" * 300 + "]" * 300, "lists and objects within one another to more than 200 levels"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "lists and objects within one another"),
        ('{"a": ' + "9" * 5000 + "}", "holds the number 99999999999999999999, which is too large"),
        ('{"a": [-' + "9" * 309 + "]}", "holds the number -9999999999999999999, which is too large"),
        ('{"a": 1e999}', "holds the number 1e999, which is too large"),
        ('{"a": -Infinity}', "holds -Infinity, which is no number of JSON"),
        ('{"a": "\\ud83d"}', "holds half a character in 'a'"),
        ('{"\\uDC00": 1}', "holds half a character"),
        ('{"a": ["x", "\ud83d"]}', "holds half a character in 'a'"),
        ("", "Expecting value"),
        ('{"a": 1} x', "Extra data"),
    ],
)
def test_json_beyond_bounds(tmp_path, text, said):
    with pytest.raises(JSONFault) as fault:
        parse_json(text)
    assert str(fault.value).startswith(said)
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"a\.json(, line 1)?: is not (valid JSON|UTF-8)"):
        read_json(path)


def test_json_within_bounds():
    deep = "[" * 200 + "]" * 200
    assert parse_json(deep) == json.loads(deep)
    assert parse_json('\ufeff{"a": [NaN, "\\ud83d\\ude00", 1.5, -0.0, 12345678901234567890]}') == {
        "a": [None, "😀", 1.5, -0.0, 12345678901234567890]
    }
    assert parse_json('"\\ud83d"', halves=True) == "\ud83d"
    assert parse_json("-" + "9" * 308) == 1 - 10**308


@pytest.mark.parametrize(
    "error, said",
    [
        (KeyError("hidden_size"), "'hidden_size' is missing"),
        (OSError(36, "File name too long"), "File name too long"),
        (OverflowError("too large\nsecond line"), "too large"),
        (MemoryError(), "MemoryError"),
        (struct.error("unpack requires"), "unpack requires"),
    ],
)
def test_what_readers_raise_becomes_one_sentence(error, said):
    with pytest.raises(UserError) as told, reading("x.bin"):
        raise error
    assert str(told.value) == f"x.bin: cannot be read ({said}); fetch it again."


def header(path, entries, data=16):
    encoded = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(data))
    return path


SOUND = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "entry, said",
    [
        (SOUND | {"data_offsets": [8, 0]}, "has the offsets [8, 0], not two places in order"),
        (SOUND | {"data_offsets": [-8, 0]}, "has the offsets [-8, 0]"),
        (SOUND | {"data_offsets": [0.0, 8.0]}, "has the offsets [0.0, 8.0]"),
        (SOUND | {"data_offsets": [0, 8, 16]}, "has the offsets"),
        (SOUND | {"data_offsets": "08"}, "has the offsets 08"),
        (SOUND | {"data_offsets": [0, True]}, "has the offsets [0, True]"),
        (SOUND | {"shape": [-2]}, "has the shape [-2]"),
        (SOUND | {"shape": [True, 2]}, "has the shape [True, 2]"),
        (SOUND | {"shape": [1] * 40 + [2]}, "has the shape"),
        (SOUND | {"shape": [2**32, 2**32]}, "has 8 bytes, which its shape"),  # 2^64 elements are 0 in 64 bit
        (SOUND | {"shape": [2**63, 2]}, "has 8 bytes, which its shape"),
        (SOUND | {"dtype": "F31"}, "has the dtype F31, which is not supported"),
        (SOUND | {"dtype": ["F32"]}, "has the dtype ['F32']"),
        ({"dtype": "F32", "shape": [2]}, "has the offsets None"),
        ([0, 8], "has no entry"),
        (SOUND | {"data_offsets": [16, 24]}, "is cut short, tensor a ends at byte 24 of 16"),
        (SOUND | {"data_offsets": [0, 10**30], "shape": [10**30 // 4]}, "is cut short"),
    ],
)
def test_a_safetensors_header_is_checked_whole(tmp_path, entry, said):
    with pytest.raises(UserError) as error:
        read_header(header(tmp_path / "a.safetensors", {"a": entry}))
    assert said in str(error.value) and str(error.value).startswith(f"{tmp_path / 'a.safetensors'}: ")


def test_tensors_over_one_another_and_odd_metadata(tmp_path):
    both = {"a": SOUND, "b": SOUND | {"data_offsets": [4, 12]}}
    with pytest.raises(UserError, match="the tensors a and b lie over one another"):
        read_header(header(tmp_path / "a.safetensors", both))
    for metadata in (["pt"], {"format": 1}):
        with pytest.raises(UserError, match="its metadata are no texts"):
            read_header(header(tmp_path / "a.safetensors", {"__metadata__": metadata, "a": SOUND}))
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**62) + bytes(100))
    with pytest.raises(UserError, match="its header is longer than the file"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "", "x\0", "x" * 300, 3, None]
)
def test_an_index_names_files_of_its_folder_alone(tmp_path, name):
    (tmp_path / "other.safetensors").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(UserError, match="index.json: (names .* no file of its folder|holds no weight_map)"):
        read_folder(folder)


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_hidden_layers", 10**9), ("num_hidden_layers", 0), ("hidden_size", -4), ("hidden_size", 2**40),
        ("hidden_size", "4"), ("hidden_size", 4.0), ("num_attention_heads", True), ("rope_theta", "10"),
        ("rms_norm_eps", None), ("vocab_size", [1]),
    ],
)  # fmt: skip
def test_sizes_that_no_model_has(tmp_path, field, value):
    write_qwen2_audio(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^config\.json: "):
        abstract_model(read_config(tmp_path), "float32", entries=read_folder(tmp_path))
    assert time.monotonic() - start < 10


def gguf(*, tensors=0, fields=b"", count=None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count or bool(fields)) + fields


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content, said",
    [
        (b"GGUX" + bytes(40), "its first bytes are not GGUF"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(40), "its version is 9"),
        (gguf(tensors=2**60), "states 1152921504606846976 tensors"),
        (gguf(count=2**61), "fields, for which it is too short"),
        (gguf(fields=struct.pack("<Q", 2**63) + b"x"), "is cut short at byte 32"),
        (gguf(fields=string(b"a") + struct.pack("<IIQ", 9, 0, 2**62)), "states 4611686018427387904 values"),
        (gguf(fields=string(b"a") + struct.pack("<IIQ", 9, 8, 2**61)), "states 2305843009213693952 texts"),
        (
            gguf(fields=string(b"a") + struct.pack("<IIQ", 9, 9, 1) + bytes(20)),
            "a list of kind 9 is not known",
        ),
        (gguf(fields=string(b"a") + struct.pack("<I", 99) + bytes(9)), "a field of kind 99 is not known"),
        (gguf(fields=string(b"general.alignment") + struct.pack("<II", 4, 3)), "its alignment 3"),
        (gguf(fields=string(b"general.alignment") + struct.pack("<II", 4, 0)), "its alignment 0"),
        (gguf(tensors=1) + string(b"t") + struct.pack("<I", 2**31) + bytes(20), "has 2147483648 axes"),
        (
            gguf(tensors=1) + string(b"t") + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0),
            "is cut short, the tensor t",
        ),
        (gguf(tensors=1) + string(b"t") + struct.pack("<IQIQ", 1, 4, 77, 0), "has the type 77"),
        (gguf(tensors=1) + string(b"t") + struct.pack("<IQIQ", 1, 5, 2, 0), "has the shape [5]"),
        (gguf(tensors=1) + string(b"t") + struct.pack("<IQIQ", 1, 4, 0, 2**63), "is cut short, the tensor t"),
    ],
)
def test_a_gguf_file_states_no_more_than_it_holds(tmp_path, content, said):
    (tmp_path / "a.gguf").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        check_bounds(tmp_path / "a.gguf", {0: (1, 4), 2: (32, 18)})
    assert said in str(error.value)
    assert time.monotonic() - start < 1


def test_read_audio_has_the_limits_of_check_audios(tmp_path):
    hum = 0.3 * np.sin(np.arange(31 * 8000) / 7)
    for name in ("a.wav", "a.flac", "a.mp3", "a.ogg"):
        soundfile.write(tmp_path / name, hum, 8000)
        with pytest.raises(UserError, match="s long, the model takes 30 s"):
            read_audio(tmp_path / name, MAX_SECONDS)
        with pytest.raises(UserError, match="s long, the model takes 30 s"):
            check_audios([tmp_path / name])
        assert len(read_audio(tmp_path / name)) >= 31 * 16_000
    # A megabyte of FLAC that holds a day.
    soundfile.write(tmp_path / "day.flac", np.zeros(86_400 * 100, np.int16), 100)
    start = time.monotonic()
    with pytest.raises(UserError, match="86400"):
        read_audio(tmp_path / "day.flac", MAX_SECONDS)
    assert time.monotonic() - start < 2


def wav(channels, rate, data=b"\0\0" * 1000):
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("channels, rate", [(1, 2**31 - 1), (1000, 16_000), (1, 10_000_000)])
def test_no_recording_has_such_a_rate_or_so_many_channels(tmp_path, channels, rate):
    (tmp_path / "a.wav").write_bytes(wav(channels, rate, bytes(channels * 2 * 50)))
    with pytest.raises(UserError, match=r"a\.wav: (has \d+ channels at \d+ Hz|is not readable as audio)"):
        read_audio(tmp_path / "a.wav")


def flac_without_length(content: bytes) -> bytes:
    """As an encoder writes it that does not know how long its input will be."""
    number = int.from_bytes(content[18:26], "big") & ~((1 << 36) - 1)
    return content[:18] + number.to_bytes(8, "big") + content[26:]


@pytest.mark.parametrize("seconds", [0.5, 3.0, 29.9, 31.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_of_unknown_length_is_decoded_up_to_the_limit(tmp_path, seconds, channels):
    draw = np.random.default_rng(0)
    samples = draw.uniform(-0.5, 0.5, (int(seconds * 16_000), channels)).astype(np.float32)
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16_000, format="FLAC")
    (tmp_path / "a.flac").write_bytes(flac_without_length(stream.getvalue()))
    if seconds > 30:
        with pytest.raises(UserError, match="the model takes 30 s"):
            read_audio(tmp_path / "a.flac", MAX_SECONDS)
        return
    (tmp_path / "b.flac").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(
        read_audio(tmp_path / "a.flac", MAX_SECONDS), read_audio(tmp_path / "b.flac")
    )
    check_audios([tmp_path / "a.flac"])
    (tmp_path / "a.flac").write_bytes(flac_without_length(stream.getvalue())[:-100])
    with pytest.raises(UserError, match=r"a\.flac: is "):
        read_audio(tmp_path / "a.flac", MAX_SECONDS)


def test_a_packed_file_that_fills_the_memory(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"question": "' + b"a" * 2**28 + b'"}\n'))
    with pytest.raises(UserError, match="unpacks to more than 300 times its size"):
        list(read_rows(tmp_path / "a.jsonl.gz"))
    damaged = bytearray(gzip.compress(b'{"question": "Why?"}\n' * 99))
    damaged[20] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged or cut short"):
        list(read_rows(tmp_path / "a.jsonl.gz"))


def test_csv_takes_no_more_than_linear_time(tmp_path):
    (tmp_path / "a.csv").write_text("id,question\n" + 'a,"b" c\r d\n' * 40_000)
    start = time.monotonic()
    assert len(list(read_rows(tmp_path / "a.csv"))) == 40_000
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{{ '%1000000000d' % 1 }}{{ 'x'|center(2000000000) }}",
        "{% for i in range(9999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ [].__class__.__base__.__subclasses__() }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_has_bounds_of_time_and_size(whole_folder, tmp_path, monkeypatch, template):
    monkeypatch.setattr(chat_template, "SECONDS", 3)
    for file in whole_folder.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    processor = Processor.from_folder(tmp_path)
    start = time.monotonic()
    with pytest.raises(UserError, match="the chat template cannot be rendered"):
        processor.encode("Why?")
    with pytest.raises(UserError, match="the chat template cannot be rendered"):
        processor.encode("Why not?")
    assert time.monotonic() - start < 60


def test_a_foreign_template_gives_the_same_prompt_as_a_known_one(whole_folder, tmp_path):
    for file in whole_folder.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    prompts = [("Why <|im_end|>?", (), None), ("é\u2028", (25,), "Be brief."), (None, (4, 9), "")]
    rendered = []
    for template in (CHAT_TEMPLATE, CHAT_TEMPLATE + "{# foreign #}"):
        (tmp_path / "chat_template.jinja").write_text(template)
        processor = Processor.from_folder(tmp_path)
        rendered.append([processor.encode(*prompt) for prompt in prompts])
    assert rendered[0] == rendered[1]
    theirs = Qwen2AudioProcessor.default_chat_template
    theirs = theirs.fget(None) if isinstance(theirs, property) else theirs
    assert {hashlib.sha256(text.encode()).hexdigest() for text in (CHAT_TEMPLATE, theirs)} == KNOWN
