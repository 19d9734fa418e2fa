"""Recordings that libsndfile does not read, made and decoded by ffmpeg itself."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from rrs_jax.errors import UserError
from rrs_jax.inputs.audio import check_audios, read_audio

FORMATS = {
    "clip.m4a": ["-c:a", "aac"],
    "clip.aac": ["-c:a", "aac"],
    "clip.webm": ["-c:a", "libopus"],
    "clip.wma": ["-c:a", "wmav2", "-ac", "2"],
    "clip.caf": ["-c:a", "alac"],
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Two seconds of a 440 Hz tone in each format."""
    folder = tmp_path_factory.mktemp("recordings")
    tone = ["-f", "lavfi", "-i", "sine=440:duration=2:sample_rate=48000"]
    for name, codec in FORMATS.items():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *tone, *codec, folder / name]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("name", FORMATS)
def test_a_recording_is_heard_as_it_was_made(recordings, ffmpeg, name):
    check_audios([recordings / name])
    heard = read_audio(recordings / name)
    assert heard.dtype == np.float32 and abs(len(heard) / 16_000 - 2) < 0.1
    spectrum = np.abs(np.fft.rfft(heard[4_000:20_000]))  # a second, so that a bin is a Hertz
    assert np.argmax(spectrum) == 440 and 0.08 < np.abs(heard).max() < 0.2


def test_a_recording_that_is_cut_or_too_long_is_refused(recordings, ffmpeg, tmp_path):
    cut = tmp_path / "cut.webm"
    content = (recordings / "clip.webm").read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut.webm: is cut short"):
        read_audio(cut)
    with pytest.raises(UserError, match=r"clip.m4a: is 2.0 s long, the model takes 1 s"):
        check_audios([recordings / "clip.m4a"], max_seconds=1)
    headless = tmp_path / "headless.m4a"  # its index, which stands at the end, is lost
    content = (recordings / "clip.m4a").read_bytes()
    headless.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="headless.m4a: it is MP4 or M4A, whose sound cannot be decoded"):
        read_audio(headless)


@pytest.mark.parametrize("name", FORMATS)
def test_without_ffmpeg_one_sentence_says_what_to_install(recordings, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"{name}: it is .*, which needs ffmpeg; install ffmpeg, or convert"):
        read_audio(recordings / name)
