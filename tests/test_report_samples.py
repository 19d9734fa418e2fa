"""Clips in the report: whatever passed the first stage's check can be encoded by the last one."""

import io

import numpy as np
import pytest
import soundfile

from rrs_jax.inputs.audio import check_audios
from rrs_jax.report.samples import CLIP_SECONDS, Sample, compressed, html_samples

RATES = (6_000, 8_000, 11_025, 12_345, 22_222, 44_100, 48_000, 88_200, 96_000, 192_000)


def speech(seconds: float, rate: int, channels: int) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * 300 * time) * (1 + np.sin(9 * time)) / 2] * channels, axis=1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize(("kind", "subtype"), [("WAVEX", "PCM_24"), ("FLAC", "PCM_16"), ("AIFF", "FLOAT")])
def test_a_clip_of_any_rate_and_channels_is_encoded(tmp_path, rate, channels, kind, subtype):
    path = tmp_path / "clip"
    soundfile.write(path, speech(1.3, rate, channels), rate, format=kind, subtype=subtype)
    check_audios([path])
    samples, at = soundfile.read(io.BytesIO(compressed(path)))
    assert at == 16_000 and samples.ndim == 1
    assert len(samples) / at == pytest.approx(1.3, abs=0.15) and np.abs(samples).max() > 0.2


@pytest.mark.parametrize("seconds", [0.1, 5, CLIP_SECONDS, 29.9])
@pytest.mark.parametrize("peak", [0.01, 1.0, 90.0])
def test_a_clip_of_any_length_and_loudness_is_encoded(tmp_path, seconds, peak):
    path = tmp_path / "clip.wav"
    soundfile.write(path, peak * speech(seconds, 16_000, 1), 16_000, subtype="FLOAT")
    check_audios([path])
    samples, at = soundfile.read(io.BytesIO(compressed(path)))
    assert len(samples) / at == pytest.approx(min(seconds, CLIP_SECONDS), abs=0.15)


@pytest.mark.parametrize("content", [b"", b"no audio", b"RIFF\0", b"<html>"])
def test_a_clip_that_was_replaced_since_is_told_and_the_rest_is_shown(tmp_path, content):
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    soundfile.write(good, speech(1, 16_000, 1), 16_000)
    bad.write_bytes(content)
    samples = [Sample(f"Question {p.stem}?", "benign", "c", "audio_text", p, []) for p in (good, bad)]
    page = html_samples(samples)
    assert page.count("<audio") == 1 and page.count("clip is not there any more") == 1
    assert "Question good?" in page and "Question bad?" in page
