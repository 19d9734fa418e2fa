"""`data.augment`: what changes in a clip, measured by others' means, and that a seed gives it again."""

import numpy as np
import pytest
import scipy.signal
import soundfile

from rrs_jax.config import default_config
from rrs_jax.config.fields import FIELDS
from rrs_jax.data.augment import augmented, draw_amounts
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.errors import UserError
from rrs_jax.files import write_jsonl
from rrs_jax.run import pipeline
from rrs_jax.testing import twin_rows

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def loudest_hertz(waveform) -> float:
    frequencies, power = scipy.signal.periodogram(waveform, RATE, window="hann")
    return frequencies[np.argmax(power)]


@pytest.mark.parametrize(
    "amounts, samples, hertz",
    [
        ({"speed": 1.25}, RATE / 1.25, 550),
        ({"tempo": 0.8}, RATE / 0.8, 440),
        ({"pitch": -12.0}, RATE, 220),
        ({"speed": 0.8, "pitch": 12.0}, RATE / 0.8, 704),
    ],
)
def test_length_and_pitch_change_as_asked(amounts, samples, hertz):
    changed = augmented(TONE, amounts)
    assert changed.dtype == np.float32 and len(changed) == pytest.approx(samples, abs=2)
    assert loudest_hertz(changed) == pytest.approx(hertz, abs=4)
    assert np.abs(changed).max() == pytest.approx(0.9, abs=1e-6)


def test_noise_is_as_far_below_the_speech_as_asked():
    changed = augmented(TONE, {"snr": 12.5}, seed=3).astype(np.float64)
    speech = (changed @ TONE) / (TONE.astype(np.float64) @ TONE) * TONE  # by least squares
    assert 10 * np.log10(np.mean(speech**2) / np.mean((changed - speech) ** 2)) == pytest.approx(
        12.5, abs=0.2
    )
    assert np.array_equal(changed, augmented(TONE, {"snr": 12.5}, seed=3))
    assert not np.array_equal(changed, augmented(TONE, {"snr": 12.5}, seed=4))


def test_amounts_are_drawn_evenly_by_seed_and_name():
    changes = ("speed:0.9:1.1", "snr:20")
    drawn = [draw_amounts(f"q{number}", changes, 0) for number in range(2_000)]
    speeds = np.array([amounts["speed"] for amounts in drawn])
    assert {amounts["snr"] for amounts in drawn} == {20.0} and list(drawn[0]) == ["speed", "snr"]
    assert 0.9 <= speeds.min() < 0.901 and 1.099 < speeds.max() <= 1.1
    assert speeds.mean() == pytest.approx(1.0, abs=0.005)
    assert draw_amounts("q7", changes[:1], 0)["speed"] == speeds[7]  # whatever else is asked for
    assert draw_amounts("q7", changes, 1) != drawn[7]


@pytest.mark.parametrize(
    "written",
    ["speed", "speed:2:1", "speed:0.1:1", "speed:a", "snr:nan", "echo:1", "speed:1:2:3", "pitch:1,pitch:2"],
)
def test_a_change_of_unknown_form_is_a_mistake(written):
    field = FIELDS["data.augment"]
    said = field.problem_with_text(written)
    assert "give different changes KIND:LOW:HIGH" in said and "speed from 0.25 to 4, tempo" in said
    assert field.problem_with_text("speed:0.9:1.1,snr:-5:30") is None and field.problem(()) is None


def config_of(folder, sound_files, name="run", augment=("speed:0.8:1.25", "snr:10:30")):
    manifest = folder / "m.jsonl"
    write_jsonl(manifest, twin_rows(sound_files))
    config = default_config()
    config.model.path, config.run_dir = "/no/model", str(folder / name)
    config.data.manifest = config.data.eval_manifest = str(manifest)
    config.data.augment = augment
    return config


def test_a_run_trains_on_changed_clips_and_asks_unchanged_ones(tmp_path, sound_files):
    def clips(config):
        pipeline.run(config, ("data",))
        manifest = tmp_path / config.run_dir / "data" / "manifest.jsonl"
        rows = load_manifest(manifest)
        return rows, [soundfile.read(path)[0] for path in audio_paths(manifest, rows)]

    rows, changed = clips(config_of(tmp_path, sound_files))
    for row, clip, source in zip(rows, changed, sound_files, strict=True):
        assert 0.8 <= row["augmented"]["speed"] <= 1.25 and 10 <= row["augmented"]["snr"] <= 30
        assert len(clip) == pytest.approx(soundfile.info(source).frames / row["augmented"]["speed"], abs=2)
        assert row["seconds"] == pytest.approx(len(clip) / RATE, abs=1e-3)
    asked = load_manifest(tmp_path / "run" / "data" / "eval" / "manifest.jsonl")
    assert [row["audio"] for row in asked] == [str(file) for file in sound_files]
    assert not any("augmented" in row for row in asked)

    again, same = clips(config_of(tmp_path, sound_files, "again"))
    assert again == rows and all(map(np.array_equal, same, changed))
    other = config_of(tmp_path, sound_files, "other")
    other.data.seed = 1
    _, different = clips(other)
    assert not any(map(np.array_equal, different, changed))


def test_a_clip_that_is_too_long_when_it_is_changed_is_a_mistake_or_left_out(tmp_path, sound_files, capsys):
    """At a quarter of the speed those of more than a second have more than four."""
    config = config_of(tmp_path, sound_files, augment=("tempo:0.25",))
    config.data.audio_max_seconds = 4.0
    long = [file for file in sound_files if soundfile.info(file).duration > 1]
    assert len(long) == 3
    listed = r"(\n  \S+: its clip: is \d.\d s long, the model takes 4 s; split it, after {'tempo': 0.25}){3}"
    with pytest.raises(UserError, match=rf"^data.augment: 3 faults to mend:{listed}$"):
        pipeline.run(config, ("data",))
    config.data.bad_rows = "skip"
    config.run_dir = str(tmp_path / "skipped")
    pipeline.run(config, ("data",))
    assert "data.augment: 3 of 8 rows are left out" in capsys.readouterr().err
    assert len(load_manifest(tmp_path / "skipped" / "data" / "manifest.jsonl")) == 5
