"""Files to waveforms and waveforms to features, against the sounds themselves and transformers."""

import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from rrs_jax.errors import UserError
from rrs_jax.frozen.audio_bank import clips_at_once
from rrs_jax.inputs import mel
from rrs_jax.inputs.audio import as_waveform, check_audios, read_audio
from rrs_jax.inputs.mel import (
    MelConfig,
    audio_token_count,
    feature_length,
    log_mel,
    pad_features,
    silence_value,
)


def speech(samples: int, rate: int = 16_000, seed: int = 0, peak: float = 0.5) -> np.ndarray:
    """Harmonics of a wavering voice in syllables over faint noise, float32 (samples,)."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 3 * time)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * np.clip(
        np.sin(2 * np.pi * 2 * time + seed), 0, 1
    )
    waveform = voice + 0.003 * random.standard_normal(samples)
    return (waveform * peak / max(np.abs(waveform).max(), 1e-9)).astype(np.float32)


# ---- files


def tones(seconds: float, rate: int, channel: int) -> np.ndarray:
    """Three tones below every Nyquist frequency used here, so that any rate samples the same sound."""
    time = np.arange(round(seconds * rate)) / rate
    return sum(0.2 * np.sin(2 * np.pi * (f + 37 * channel) * time + f) for f in (220.0, 970.0, 2310.0))


@pytest.mark.parametrize(
    "name, rate, channels, subtype, tolerance",
    [
        ("a.wav", 16_000, 1, "PCM_16", 4e-5),
        ("a.wav", 8_000, 2, "FLOAT", 1e-4),
        ("a.flac", 44_100, 2, "PCM_24", 1e-4),
        ("a.mp3", 22_050, 1, None, 0.03),
        ("a.wav", 48_000, 6, "PCM_32", 1e-4),
    ],
)
def test_read_audio_gives_the_sound_at_16_khz(tmp_path, name, rate, channels, subtype, tolerance):
    path = tmp_path / name
    soundfile.write(
        path, np.stack([tones(1.01, rate, c) for c in range(channels)], axis=1), rate, subtype=subtype
    )
    waveform = read_audio(path)
    expected = np.mean([tones(1.01, 16_000, c) for c in range(channels)], axis=0)
    assert waveform.dtype == np.float32 and waveform.shape == expected.shape
    inner = slice(1_600, -1_600)  # a filter and a codec see silence beyond both ends
    np.testing.assert_allclose(waveform[inner], expected[inner], atol=tolerance)


def test_16_khz_samples_are_not_touched(tmp_path):
    path = tmp_path / "a.wav"
    samples = (speech(5_000) * 32_768).astype(np.int16)
    soundfile.write(path, samples, 16_000)
    np.testing.assert_array_equal(read_audio(path), samples.astype(np.float32) / 32_768)


def test_waveforms_pass_and_other_arrays_do_not():
    np.testing.assert_array_equal(as_waveform(speech(400).astype(np.float64)), speech(400))
    for wrong, reason in [
        (np.zeros((2, 400), np.float32), "shape"),
        (np.zeros(400, np.int16), "int16"),
        (np.array([0.1, np.nan]), "NaN"),
        (np.zeros(0), "no samples"),
        (speech(400) * 32767, "full scale"),
    ]:
        with pytest.raises(UserError, match=reason):
            as_waveform(wrong)


def write_bad_clips(folder) -> dict[str, str]:
    """Every kind of bad clip and a part of the reason that must be given for it."""
    good = speech(16_000)
    (folder / "text.wav").write_text("this is no audio")
    (folder / "empty.wav").touch()
    (folder / "cut.wav").write_bytes(b"RIFF\x00")
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "header_only.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "silent.wav", np.full(16_000, 5e-5), 16_000, subtype="FLOAT")
    soundfile.write(folder / "cancels.wav", np.stack([good, -good], axis=1), 16_000, subtype="FLOAT")
    soundfile.write(
        folder / "nan.wav", np.where(np.arange(16_000) == 99, np.nan, good), 16_000, subtype="FLOAT"
    )
    soundfile.write(folder / "short.wav", good[:2_205], 44_100)
    soundfile.write(folder / "long.flac", np.tile(good[:8_000], 31), 8_000)
    return {
        "gone.wav": "does not exist",
        "text.wav": "not readable",
        "empty.wav": "empty file",
        "cut.wav": "not readable",
        "folder.wav": "not a file",
        "header_only.wav": "no samples",
        "silent.wav": "is silent",
        "cancels.wav": "is silent",
        "nan.wav": "NaN",
        "short.wav": "0.050 s long, too short",
        "long.flac": "31.0 s long",
    }


def test_check_audios_lists_all_bad_clips_at_once(tmp_path):
    reasons = write_bad_clips(tmp_path)
    soundfile.write(tmp_path / "good.wav", speech(30 * 16_000), 16_000)
    soundfile.write(tmp_path / "good.mp3", speech(4_410, 44_100), 44_100)
    good = [tmp_path / "good.wav", tmp_path / "good.mp3", speech(1_600)]
    check_audios(good)
    with pytest.raises(UserError) as caught:
        check_audios([*good, *(tmp_path / name for name in reasons), np.zeros(9_000)])
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(
        f"{len(reasons) + 1} of {len(reasons) + 4} audio clips cannot be used; replace them"
    )
    assert len(lines) == len(reasons) + 1
    for line, (name, reason) in zip(lines, reasons.items(), strict=False):
        assert f"{name}: " in line and reason in line
    assert "array 14: is silent" in lines[-1]


def test_a_clip_of_one_audio_token_is_too_short_whatever_the_limit():
    check_audios([speech(961)], min_seconds=0.0)
    with pytest.raises(UserError, match="too short"):
        check_audios([speech(960)], min_seconds=0.0)


def test_a_long_file_is_rejected_by_its_header(tmp_path, monkeypatch):
    path = tmp_path / "meeting.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    size = 44 + 2 * 40 * 60 * 16_000
    header = bytearray(path.read_bytes()[:44])
    header[4:8], header[40:44] = (size - 8).to_bytes(4, "little"), (size - 44).to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("the samples were decoded"))
    with pytest.raises(UserError, match="is 2400.0 s long, the model takes 30 s"):
        check_audios([path])


@pytest.mark.parametrize("name", ["gone.wav", "text.wav", "empty.wav", "nan.wav", "header_only.wav"])
def test_read_audio_names_the_bad_file(tmp_path, name):
    reasons = write_bad_clips(tmp_path)
    with pytest.raises(UserError, match=rf"{name}: .*{reasons[name]}"):
        read_audio(tmp_path / name)


# ---- features

LENGTHS = [1, 159, 160, 161, 200, 641, 1_000, 1_601, 48_000, 48_119, 48_120, 48_121, 95_999]
NEAR_END = [
    479_400,
    479_479,
    479_640,
    479_680,
    479_681,
    479_839,
    479_840,
    479_841,
    479_959,
    479_961,
    479_999,
    480_000,
]


@pytest.fixture(scope="module", params=[80, 128])
def extractor(request):
    return WhisperFeatureExtractor(feature_size=request.param)


@pytest.mark.parametrize("samples", LENGTHS + NEAR_END)
def test_log_mel_equals_the_extractor_on_the_padded_clip(extractor, samples):
    waveform = speech(samples, seed=samples)
    features, m = log_mel(waveform, MelConfig(num_mel_bins=extractor.feature_size))
    output = extractor(waveform, sampling_rate=16_000, return_attention_mask=True)
    assert m == output["attention_mask"].sum() and features.dtype == np.float32
    assert features.shape == (extractor.feature_size, min(m + 2, 3_000))

    filled, lengths = pad_features([(features, m)], 3_000)
    assert lengths.dtype == np.int32 and lengths.tolist() == [m]
    # The extractor in float64 is the definition; its torch path computes in float32.
    exact = extractor._np_extract_fbank_features(np.pad(waveform, (0, 480_000 - samples))[None], "cpu")
    np.testing.assert_allclose(filled, exact, atol=2e-6)
    np.testing.assert_allclose(filled, output["input_features"], atol=1e-4)


@pytest.mark.parametrize("peak", [1e-7, 1e-5, 1e-3, 1.0])
def test_floor_of_faint_and_loud_clips(extractor, peak):
    waveform = speech(20_000, peak=peak)
    features, m = log_mel(waveform, MelConfig(num_mel_bins=extractor.feature_size))
    exact = extractor._np_extract_fbank_features(np.pad(waveform, (0, 460_000))[None], "cpu")[0]
    np.testing.assert_allclose(features, exact[:, : m + 2], atol=2e-6)
    np.testing.assert_allclose(silence_value(features), exact[:, m + 2 :].min(), atol=1e-6)
    np.testing.assert_allclose(silence_value(features), exact[:, m + 2 :].max(), atol=1e-6)


def test_filters_equal_transformers():
    for bins in (80, 128):
        expected = mel_filter_bank(201, bins, 0.0, 8_000.0, 16_000, norm="slaney", mel_scale="slaney")
        np.testing.assert_allclose(mel.mel_filters(bins), expected, atol=1e-12)


def test_a_clip_that_would_be_cut_or_is_empty_is_refused():
    for samples in (0, 480_001):
        with pytest.raises(UserError, match="split it"):
            log_mel(np.zeros(samples, np.float32), MelConfig())


def test_each_clip_is_filled_with_its_own_silence():
    clips = [log_mel(speech(n, seed=n, peak=peak), MelConfig()) for n, peak in [(3_000, 1.0), (9_000, 1e-3)]]
    padded, lengths = pad_features(clips, 64)
    assert padded.shape == (2, 128, 64) and lengths.tolist() == [19, 57]
    for row, (features, m) in zip(padded, clips, strict=True):
        np.testing.assert_array_equal(row[:, : m + 2], features)
        np.testing.assert_array_equal(row[:, m + 2 :], np.float32(silence_value(features)))
    assert padded[0, 0, -1] != padded[1, 0, -1]
    with pytest.raises(ValueError, match="59 frames, the bucket 48"):
        pad_features(clips, 48)


def test_token_counts():
    # Number of frames and of tokens that the released processor was seen to give.
    assert [feature_length(n) for n in (1, 160, 161, 641, 1_000, 480_000)] == [1, 1, 2, 5, 7, 3_000]
    assert [audio_token_count(m) for m in (1, 2, 3, 5, 7, 328, 3_000)] == [0, 0, 1, 1, 2, 82, 750]


def test_config_from_a_preprocessor_file(extractor):
    config = MelConfig.from_dict(extractor.to_dict(), "preprocessor_config.json")
    assert (
        config == MelConfig(num_mel_bins=extractor.feature_size)
        and config.max_frames == extractor.nb_max_frames
    )
    for change, message in [
        ({"feature_extractor_type": "EncodecFeatureExtractor"}, "EncodecFeatureExtractor is unknown"),
        ({"dither": 1e-4}, "dither"),
    ]:
        with pytest.raises(UserError, match=f"preprocessor_config.json: .*{message}"):
            MelConfig.from_dict(extractor.to_dict() | change, "preprocessor_config.json")
    with pytest.raises(UserError, match="'chunk_length' is missing"):
        MelConfig.from_dict(
            {"feature_size": 80, "sampling_rate": 16_000, "n_fft": 400, "hop_length": 160}, "p.json"
        )


@pytest.mark.parametrize(
    "clips, frames, least, multiple, size",
    [
        (2100, 592, 16, 1, 56),
        (3, 592, 16, 1, 16),
        (20, 592, 4, 1, 24),
        (2100, 3000, 16, 1, 16),
        (2100, 592, 16, 5, 60),
        (7, 100, 6, 4, 8),
    ],
)
def test_short_clips_are_encoded_many_at_once(clips, frames, least, multiple, size):
    assert clips_at_once(clips, frames, least, multiple) == size
