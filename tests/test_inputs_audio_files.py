"""Audio files whose headers are wrong: cut, joined, streamed, of variable rate, and no audio at all."""

import io
import itertools

import numpy as np
import pytest
import soundfile

from rrs_jax.errors import UserError
from rrs_jax.inputs.audio import check_audios, read_audio
from rrs_jax.inputs.mpeg_frames import read_frames


def tone(seconds: float, rate: int, frequency: float = 300.0, channels: int = 1) -> np.ndarray:
    """A tone that begins loud and ends loud, (samples, channels), with a pause between."""
    time = np.arange(round(seconds * rate)) / rate
    loud = 0.4 * np.sin(2 * np.pi * frequency * time) * ((time < 0.4 * seconds) | (time > 0.6 * seconds))
    return np.stack([loud] * channels, axis=1)


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None, **options) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype, **options)
    return stream.getvalue()


def mp3(seconds: float, rate: int = 24_000, mode: str = "VARIABLE", **options) -> bytes:
    return encoded(tone(seconds, rate, **options), rate, "MP3", bitrate_mode=mode, compression_level=0.5)


def without_stated_length(content: bytes) -> bytes:
    """An MP3 file less the frame that states its length, as streaming writers leave it out."""
    spans = read_frames(content).spans
    return b"".join(content[start : start + length] for start, length in spans)


def seconds_of(path, content: bytes) -> float:
    """Length of a file that passes the check."""
    path.write_bytes(content)
    check_audios([path])
    return len(read_audio(path)) / 16_000


def fault_of(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        check_audios([path])
    with pytest.raises(UserError):
        read_audio(path)
    return str(refused.value).splitlines()[1]


CONTAINERS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAVEX", "PCM_24"),
    "adpcm": ("WAV", "IMA_ADPCM"),
    "rifx": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}
SHARES = (0.2, 0.5, 0.9)


@pytest.mark.parametrize(("name", "share"), [*itertools.product(CONTAINERS, SHARES)])
def test_a_cut_file_is_refused_and_the_whole_one_is_not(tmp_path, name, share):
    endian = {"endian": "BIG"} if name == "rifx" else {}
    whole = encoded(tone(2, 24_000), 24_000, *CONTAINERS[name], **endian)
    assert seconds_of(tmp_path / "whole", whole) == pytest.approx(2, abs=0.06)
    assert "cut" in fault_of(tmp_path / f"cut.{name}", whole[: int(share * len(whole))]) or name in (
        "flac",
        "vorbis",
        "caf",
    )  # whose decoders say it in their own words


@pytest.mark.parametrize(("mode", "share"), [*itertools.product(("VARIABLE", "CONSTANT"), (0.31, 0.5, 0.77))])
def test_an_mp3_without_a_stated_length_is_cut_where_its_last_frame_is(tmp_path, mode, share):
    content = without_stated_length(mp3(2, mode=mode))
    spans = read_frames(content).spans
    end = spans[int(share * len(spans))][0]
    assert seconds_of(tmp_path / "a.mp3", content[:end]) == pytest.approx(2 * share, abs=0.1)
    assert "cut short" in fault_of(tmp_path / "b.mp3", content[: end + 9])


@pytest.mark.parametrize("name", ["wav", "wav24", "rf64", "w64", "aiff", "au", "flac"])
def test_a_file_behind_a_file_is_not_left_out_unsaid(tmp_path, name):
    one, two = (encoded(tone(s, 24_000), 24_000, *CONTAINERS[name]) for s in (1, 1.5))
    assert "is two files joined end to end" in fault_of(tmp_path / f"a.{name}", one + two)


@pytest.mark.parametrize("name", ["vorbis", "opus", "mp3"])
@pytest.mark.parametrize("count", [2, 3])
def test_streams_one_behind_the_other_are_heard_to_the_end(tmp_path, name, count):
    parts = [tone(0.5 + n, 24_000, 300 + 200 * n) for n in range(count)]
    content = b"".join(encoded(part, 24_000, *CONTAINERS[name]) for part in parts)
    assert seconds_of(tmp_path / "a", content) == pytest.approx(
        sum(map(len, parts)) / 24_000, abs=0.1 * count
    )
    end = read_audio(tmp_path / "a")[-4_000:]
    peak = np.abs(np.fft.rfft(end)).argmax() * 16_000 / len(end)
    assert peak == pytest.approx(300 + 200 * (count - 1), abs=8)  # the last part's tone


@pytest.mark.parametrize("other", [{"rate": 16_000}, {"channels": 2}])
def test_joined_recordings_of_different_kinds_are_refused(tmp_path, other):
    assert "joined" in fault_of(tmp_path / "a.mp3", mp3(1) + mp3(1, **other))
    ogg = [encoded(tone(1, rate), rate, "OGG", "VORBIS") for rate in (24_000, 16_000)]
    assert "joined" in fault_of(tmp_path / "a.ogg", b"".join(ogg))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_of_any_rate_without_a_stated_length_is_heard_to_the_end(tmp_path, rate, channels, mode):
    content = without_stated_length(mp3(3, rate, mode, channels=channels))
    assert seconds_of(tmp_path / "a.mp3", content) == pytest.approx(3, abs=0.25)
    assert seconds_of(tmp_path / "b.mp3", b"ID3\4\0\0\0\0\1\0" + bytes(128) + content) == pytest.approx(
        3, abs=0.25
    )
    assert seconds_of(tmp_path / "c.mp3", content + b"TAG" + bytes(125)) == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize("seconds", [20, 31])
def test_a_variable_rate_file_is_too_long_by_its_frames(tmp_path, seconds):
    samples = tone(seconds, 16_000)
    samples[8_000:] *= 1e-3  # a loud start, from which a reader would guess many bytes a second
    content = without_stated_length(
        encoded(samples, 16_000, "MP3", bitrate_mode="VARIABLE", compression_level=0)
    )
    (tmp_path / "a.mp3").write_bytes(content)
    assert len(read_audio(tmp_path / "a.mp3", 40.0)) / 16_000 == pytest.approx(seconds, abs=0.25)
    if seconds > 30:
        with pytest.raises(UserError, match=r"is 31\.\d s long, the model takes 30 s"):
            check_audios([tmp_path / "a.mp3"])
    else:
        check_audios([tmp_path / "a.mp3"])


def placeholder(content: bytes, size: int, riff: int | None = None) -> bytes:
    place = content.index(b"data") + 4
    patched = bytearray(content)
    patched[place : place + 4] = size.to_bytes(4, "little")
    if riff is not None:
        patched[4:8] = riff.to_bytes(4, "little")
    return bytes(patched)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x7FFFF000, 0x7FFFFFDB, 0x80000000, 0xFFFFFFFF, 0xFFFFFFDB])
@pytest.mark.parametrize("riff", [0, 8, 0xFFFFFFFF, None])
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_a_stream_that_does_not_know_its_length_is_read_whole(tmp_path, size, riff, rate):
    whole = encoded(tone(1.5, rate), rate, "WAV", "PCM_16")
    assert seconds_of(tmp_path / "a.wav", placeholder(whole, size, riff)) == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize("surplus", [1, 8, 36, 44])
def test_a_header_that_counts_itself_is_no_cut(tmp_path, surplus):
    whole = encoded(tone(1.5, 16_000), 16_000, "WAV", "PCM_16")
    assert seconds_of(tmp_path / "a.wav", placeholder(whole, 48_000 + surplus)) == pytest.approx(
        1.5, abs=1e-3
    )


def test_chunks_behind_the_samples_are_no_second_file(tmp_path):
    whole = encoded(tone(1, 16_000), 16_000, "WAV", "PCM_16")
    for chunk in (b"LIST\x04\0\0\0INFO", b"id3 \x02\0\0\0xx", b"RIFF", b"\0" * 300):
        assert seconds_of(tmp_path / "a.wav", whole + chunk) == 1


NO_AUDIO = {
    "page.mp3": (b"<html><body>429 Too Many Requests</body></html>", "web page"),
    "page.wav": (b"\n <!DOCTYPE html>", "web page"),
    "pointer.wav": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "git lfs pull",
    ),
    "error.flac": (b'{"error": "not found"}', "JSON"),
    "notes.wav": (b"These are words, no sounds", "text"),
    "clip.m4a": (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(40), "M4A"),
    "clip.webm": (b"\x1aE\xdf\xa3" + bytes(60), "WebM"),
    "clips.wav": (b"PK\x03\x04" + bytes(60), "zip"),
    "clip.raw": (np.random.default_rng(0).bytes(6_400), "raw samples"),
    "noise.mp3": (np.random.default_rng(1).bytes(6_400).replace(b"\xff", b"\0"), "format is not known"),
    "empty.wav": (b"", "empty file"),
}


@pytest.mark.parametrize("name", NO_AUDIO)
def test_what_is_no_audio_is_named(tmp_path, name):
    content, reason = NO_AUDIO[name]
    fault = fault_of(tmp_path / name, content)
    assert reason in fault and "does not exist" not in fault.lower()


@pytest.mark.parametrize(
    "path", ["x" * 300, "data:audio/wav;base64," + "A" * 5_000, "a\0b", "/dev/null", "/"]
)
def test_names_that_are_no_files_are_faults_too(path):
    with pytest.raises(UserError, match="1 of 1 audio clips cannot be used"):
        check_audios([path])


def test_a_wav_file_may_be_called_raw(tmp_path):
    assert seconds_of(tmp_path / "a.raw", encoded(tone(1, 16_000), 16_000, "WAV", "PCM_16")) == 1


@pytest.mark.parametrize("surplus", [1, 16, 160, 799, 1_600])
def test_a_clip_that_is_little_too_long_is_said_to_be_longer(tmp_path, surplus):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(30 + surplus / 16_000, 16_000), 16_000)
    with pytest.raises(UserError) as refused:
        check_audios([path])
    said = float(str(refused.value).split("a.wav: is ")[1].split(" s long")[0])
    assert 30 < said < 30.2


@pytest.mark.parametrize("rate", [11_025, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("shift", [0.0, 1e-6])
def test_channels_in_opposite_phase_are_not_called_silent(tmp_path, rate, shift):
    one = tone(2, rate)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([one, -one + shift], axis=1), rate, subtype="FLOAT")
    with pytest.raises(UserError, match="has channels that cancel each other out"):
        check_audios([tmp_path / "a.wav"])


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    soundfile.write(tmp_path / "a.wav", tone(1, 16_000), 16_000)
    check_audios(["~/a.wav"])
    assert len(read_audio("~/a.wav")) == 16_000
