"""Voices, clips and spoken manifests: with tones in place of voices, and one sentence by the real voice."""

import importlib.metadata
import os
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from helpers.voices import Tones, pitch
from rrs_jax.data import speech
from rrs_jax.data.engines import ENGINES, Espeak, Flite, Hibari
from rrs_jax.data.intelligibility import word_errors
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.speech import clip_path, speak_all
from rrs_jax.data.starter import StarterChoice, build_starter
from rrs_jax.data.voices import Voice, draw_voice, read_voices, speak
from rrs_jax.errors import UserError
from rrs_jax.inputs.audio import check_audios


class Broken(Tones):
    """The speaker's name says how its waveforms are broken."""

    name = "broken"

    def say(self, text, speaker, speed):
        if "fine" in text:
            return super().say(text, "200", speed)
        return {
            "empty": np.zeros(0),
            "silent": np.zeros(24_000),
            "click": np.eye(1, 72_000, 36_000)[0] + 3e-3 * np.sin(np.arange(72_000)),
            "nan": np.full(24_000, np.nan),
            "clipped": np.sign(np.sin(np.arange(24_000) / 20)),
            "hurried": 0.5 * np.sin(np.arange(2_400)),
            "endless": 0.5 * np.sin(np.arange(31 * 24_000)),
        }[speaker]


@pytest.fixture(autouse=True)
def tones(monkeypatch):
    monkeypatch.setitem(ENGINES, "tones", Tones)


@pytest.mark.parametrize(
    ("speed", "semitones"), [(1.0, 0), (1.25, 0), (0.8, 0), (1.0, 3), (1.0, -4), (1.2, -2)]
)
def test_speed_and_pitch_are_independent(speed, semitones):
    clip = speak("one two three four", Voice(Tones, "200", speed, semitones))
    assert clip.dtype == np.float32
    assert len(clip) / 16_000 == pytest.approx(1.2 / speed + 0.2, abs=0.02)  # 0.1 s of silence on either side
    assert pitch(clip) == pytest.approx(200 * 2 ** (semitones / 12), rel=0.005)
    assert np.abs(clip).max() == pytest.approx(0.9, abs=1e-6)
    assert np.abs(clip[:1_200]).max() < 0.01 and np.abs(clip[-1_200:]).max() < 0.01


@pytest.mark.parametrize(
    ("speaker", "reason"),
    [
        ("empty", "no samples"),
        ("silent", "silence"),
        ("click", "near silence"),
        ("nan", "NaN"),
        ("clipped", "clipped"),
        ("hurried", "too short for 4 words"),
        ("endless", "more than the 30 s"),
    ],
)
def test_broken_clips_are_refused(speaker, reason):
    with pytest.raises(UserError, match=reason):
        speak("one two three four", Voice(Broken, speaker))


def test_voice_names():
    (slow,) = read_voices("hibari:heart:0.9:-2")
    assert (slow.speaker, slow.speed, slow.semitones) == ("heart", 0.9, -2.0)
    assert slow.name == "hibari:heart:0.9:-2"
    assert read_voices("hibari:heart, hibari:heart:1:0") == read_voices(["hibari:heart"])
    assert [voice.name for voice in read_voices()] == [voice.name for voice in read_voices("hibari")]
    assert tuple(voice.name for voice in read_voices()) == ENGINES["hibari"].voices
    assert 6 <= len(read_voices()) <= 8


def test_unknown_voices_are_listed():
    wrong = (
        "heart",
        "hibari:",
        "hibari:heart:fast",
        "hibari:heart:3",
        "hibari:heart:1:7",
        "hibari:heart:1:nan",
        "x:y",
    )
    with pytest.raises(UserError) as error:
        read_voices(["hibari:heart", *wrong])
    assert all(name in str(error.value) for name in wrong)


@pytest.mark.parametrize(
    ("engine", "module", "remedy"),
    [
        (Hibari, "hibari", "pip install hibari-tts"),
        (Flite, None, "apt-get install flite"),
        (Espeak, "espeakng_loader", "pip install espeakng-loader"),
    ],
)
def test_a_missing_engine_names_its_package(engine, module, remedy, monkeypatch):
    monkeypatch.setenv("PATH", "")
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=remedy):
        engine()


FLITE = f"""#!{sys.executable}
import sys, numpy, soundfile
if sys.argv[1] == "--version":
    print("  version: flite-2.9 (a stand-in)")
else:
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    assert set(given) == {{"-voice", "--setf", "-t", "-o"}}, given
    name, stretch = given["--setf"].split("=")
    assert (name, given["-voice"]) == ("duration_stretch", "slt")
    samples = int(16_000 * 0.3 * len(given["-t"].split()) * float(stretch))
    soundfile.write(given["-o"], 0.3 * numpy.sin(numpy.arange(samples) / 10), 16_000)
"""


def test_flite_is_called(tmp_path, monkeypatch):
    """A stand-in for the program takes the options of flite 2.2 and nothing else."""
    program = tmp_path / "flite"
    program.write_text(FLITE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    flite = Flite()
    assert flite.version == "2.9"
    assert len(flite.say("one two", "slt", 1.25)) == pytest.approx(16_000 * 0.6 / 1.25, abs=2)
    with pytest.raises(UserError, match="no speaker 'anna'"):
        flite.say("one two", "anna", 1.0)


def test_draws_are_even_and_repeat():
    voices = read_voices("tones")
    texts = [f"question {i}" for i in range(2000)]
    drawn = [draw_voice(text, 0, voices) for text in texts]
    counts = Counter(drawn)
    assert len(counts) == 4
    # Chi-squared of a fair draw with 3 degrees of freedom is below 16.3 in 999 of 1000 cases.
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 16.3
    assert drawn == [draw_voice(text, 0, voices) for text in texts]
    assert drawn != [draw_voice(text, 1, voices) for text in texts]


def test_clips_are_spoken_once_and_in_order(tmp_path, monkeypatch):
    voices = read_voices("tones")
    items = [
        ("one two three", voices[0]),
        ("one two", voices[1]),
        ("one two three", voices[0]),
        ("one two", voices[3]),
    ]
    clips = speak_all(items, tmp_path, workers=1)
    assert clips[0] == clips[2] and len({path for path, _ in clips}) == 3
    for (text, voice), (path, seconds) in zip(items, clips, strict=True):
        samples, rate = soundfile.read(path, dtype="float32")
        info = soundfile.info(path)
        assert (rate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        assert seconds == len(samples) / rate
        np.testing.assert_allclose(samples, speak(text, voice), atol=2**-15)
    check_audios([path for path, _ in clips])

    monkeypatch.setattr(speech, "speak", lambda text, voice: pytest.fail("a cached clip was spoken again"))
    assert speak_all(items, tmp_path, workers=1) == clips


def test_damaged_and_outdated_clips_are_spoken_again(tmp_path, monkeypatch, capfd):
    voice = Voice(Tones, "200")
    ((path, seconds),) = speak_all([("one two", voice)], tmp_path)
    assert "damaged" not in capfd.readouterr().err  # one that was never there is not
    path.write_bytes(b"fLaC")
    assert speak_all([("one two", voice)], tmp_path) == [(path, seconds)]
    assert f"{path}: is damaged and spoken again" in capfd.readouterr().err
    assert soundfile.info(path).duration == seconds
    monkeypatch.setattr(Tones, "version", "2")
    assert clip_path("one two", voice, tmp_path) != path


def test_several_processes_give_the_same(tmp_path, capfd):
    voices = read_voices("tones")
    items = [(f"number {'one ' * (i % 7)}{i}", voices[i % 4]) for i in range(70)]
    several = speak_all(items, tmp_path / "several", workers=2)
    alone = speak_all(items, tmp_path / "alone", workers=1)
    assert [seconds for _, seconds in several] == [seconds for _, seconds in alone]
    assert all(a.read_bytes() == b.read_bytes() for (a, _), (b, _) in zip(several, alone, strict=True))
    assert "speaking the questions: 70 clips" in capfd.readouterr().err


def test_all_failures_are_listed_and_the_rest_is_kept(tmp_path):
    items = [
        ("a b c", Voice(Broken, "silent")),
        ("fine words", Voice(Broken, "silent")),
        ("d e f", Voice(Broken, "nan")),
    ]
    with pytest.raises(UserError) as error:
        speak_all(items, tmp_path)
    assert "2 of 3" in str(error.value) and "'a b c'" in str(error.value) and "'d e f'" in str(error.value)
    assert clip_path(*items[1], tmp_path).exists()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path))
    assert clip_path("one", Voice(Tones, "200")).is_relative_to(tmp_path / "speech")
    monkeypatch.delenv("RRS_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert clip_path("one", Voice(Tones, "200")).is_relative_to(tmp_path / "home/.cache/rrs_jax/speech")


def test_spoken_manifest(tmp_path):
    choice = StarterChoice("eval", pairs_per_category=1, borderline=5, seed=5)
    speech = {"voices": "tones", "cache": tmp_path / "cache", "workers": 1}
    path = build_starter(tmp_path / "eval", choice, **speech)
    rows = load_manifest(path)
    assert path == tmp_path / "eval/manifest.jsonl"
    assert Counter(row["label"] for row in rows) == {"harmful": 14, "benign": 14, "borderline": 5}
    assert len({row["voice"] for row in rows}) == 4
    check_audios(audio_paths(path, rows))
    for row, audio in zip(rows, audio_paths(path, rows), strict=True):
        assert row["voice"] == draw_voice(row["question"], 5, read_voices("tones")).name
        assert row["seconds"] == pytest.approx(soundfile.info(audio).duration, abs=1e-3)
        assert audio.parent == tmp_path / "eval/audio"

    written = path.read_bytes()
    assert build_starter(tmp_path / "eval", choice, **speech).read_bytes() == written  # once more
    train = StarterChoice("train", pairs_per_category=1, seed=5)
    train = load_manifest(build_starter(tmp_path / "train", train, **speech))
    assert Counter(row["label"] for row in train) == {"harmful": 14, "benign": 14}
    assert {row["pair_id"] for row in train}.isdisjoint(row["pair_id"] for row in rows)


def test_several_voices_say_each_question(tmp_path):
    choice = StarterChoice("train", pairs_per_category=1, categories=2, seed=5)
    speech = {"voices": "tones", "cache": tmp_path / "cache", "workers": 1}
    once = load_manifest(build_starter(tmp_path / "once", choice, **speech))
    rows = load_manifest(build_starter(tmp_path / "more", choice, voices_per_question=3, **speech))
    assert rows[: len(once)] == once  # the first voice is the same
    assert [row["id"] for row in rows[4:]] == [f"{row['id']}-voice{turn}" for turn in (2, 3) for row in once]
    for row in once:
        said = [other for other in rows if other["question"] == row["question"]]
        assert len({other["voice"] for other in said}) == 3 and {other["pair_id"] for other in said} == {
            row["pair_id"]
        }
    with pytest.raises(UserError, match="data.voices_per_question: is 5 with 4 voices; give fewer"):
        build_starter(tmp_path / "many", choice, voices_per_question=5, **speech)


def test_clips_survive_an_empty_cache_and_another_disk(tmp_path, monkeypatch):
    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("rrs_jax.data.speech_cache.os.link", other_disk)
    choice = StarterChoice("train", pairs_per_category=1, categories=1)
    path = build_starter(tmp_path / "data", choice, voices="tones", cache=tmp_path / "cache")
    audio, _ = audio_paths(path, load_manifest(path))
    assert audio.stat().st_nlink == 1
    check_audios([audio])


def test_hibari_speaks():
    """The real voice: offline, 24 kHz, the same samples each time, a plausible length and loudness."""
    plain, slow, low = read_voices("hibari:heart,hibari:heart:0.8,hibari:heart:1:-3")
    question = "How do I teach my dog to befriend cats?"
    raw = plain.speak(question)
    assert plain.sample_rate == 24_000 and raw.dtype == np.float32 and raw.ndim == 1
    np.testing.assert_array_equal(raw, plain.speak(question))
    assert plain.version == importlib.metadata.version("hibari-tts")
    clip, slow_clip, low_clip = (speak(question, voice) for voice in (plain, slow, low))
    assert 1.5 < len(clip) / 16_000 < 4.0  # nine words
    assert 1.1 < len(slow_clip) / len(clip) < 1.4
    assert len(low_clip) / len(clip) == pytest.approx(1.0, abs=0.1)  # pitch leaves the tempo
    assert 0.05 < np.sqrt(np.mean(clip**2)) < 0.3


def test_word_errors():
    assert word_errors("How can I get my coworker's records?", " how can I get my co-workers records") == (
        0,
        7,
    )
    assert word_errors("How do I set my beehive on a stand?", "How do I set my be high on stand.") == (3, 9)


def test_voices_compute_with_one_thread_each_and_nothing_else_does(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with speech.voice_processes(2, niceness=3) as pool:
        assert set(pool.map(os.getenv, speech.THREAD_VARIABLES)) == {"1"}
        assert list(pool.map(os.nice, [0])) == [os.nice(0) + 3]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "OPENBLAS_NUM_THREADS" not in os.environ
