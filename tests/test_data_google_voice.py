"""Google's voices by the official client, against a local server that fails in every way it can."""

import time

import numpy as np
import pytest
import requests
import soundfile

from helpers.stand_ins import FAILURES, GoogleTTS, first_fails
from rrs_jax.data import voices as voices_module
from rrs_jax.data.engines import ENGINES
from rrs_jax.data.google_voice import Google
from rrs_jax.data.speech import Budget, speak_all, try_speak_all
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.errors import UserError

TEXTS = [f"How do I feed {name} young cats?" for name in "one two three four five six seven eight".split()]


class QuickGoogle(Google):
    def __init__(self):
        super().__init__(timeout=0.5, first_wait=0.01, tries=5, concurrency=4)


@pytest.fixture
def google(tmp_path, monkeypatch):
    """Starts a server for a plan and makes it the engine's; the cache is empty."""
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ENGINES, "google", QuickGoogle)
    servers = []

    def start(plan=lambda n, name: "ok", **options):
        server = GoogleTTS(plan, **options).__enter__()
        servers.append(server)
        monkeypatch.setenv("RRS_JAX_GOOGLE_TTS_ENDPOINT", server.url)
        voices_module.loaded.cache_clear()
        return server

    yield start
    for server in servers:
        server.__exit__()
    voices_module.loaded.cache_clear()


def spoken(texts=TEXTS, **options):
    drawn = read_voices("google")
    return speak_all([(text, draw_voice(text, 0, drawn)) for text in texts], max_cost_usd=1.0, **options)


def samples(clips):
    return [soundfile.read(path)[0] for path, _ in clips]


def test_the_live_list_gives_the_papers_voices(google):
    google()
    names = [voice.name for voice in read_voices("google")]
    assert names == [
        f"google:en-US-{name}:1:0" for name in ("Neural2-A", "Neural2-C", "Standard-B", "Wavenet-D")
    ]
    (voice,) = read_voices("google:en-US-Neural2-A:0.9:2")
    assert (voice.speaker, voice.speed, voice.semitones) == ("en-US-Neural2-A", 0.9, 2.0)


@pytest.mark.parametrize("failure", [*FAILURES, "header", "cut", "noise", "silence"])
def test_every_failure_of_a_voice_is_got_over(failure, google, tmp_path, monkeypatch):
    google()
    expected = samples(spoken(cache=tmp_path / "good"))
    server = google(first_fails(failure))
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "other"))
    found = samples(spoken())
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert set(server.calls.values()) == {2} and set(server.sold.values()) == {1}
    spoken()
    assert set(server.calls.values()) == {2}  # all from the cache


def test_what_was_bought_is_not_bought_again_when_the_clips_are_lost(google, tmp_path):
    server = google()
    first = samples(spoken(cache=tmp_path / "clips"))
    second = samples(spoken(cache=tmp_path / "other clips"))  # only the service's own answers are left
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert set(server.calls.values()) == {1}
    info = soundfile.info(next((tmp_path / "clips").glob("*/*.flac")))
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")


def test_nothing_is_bought_without_consent(google):
    server = google()
    drawn = read_voices("google:en-US-Neural2-A")
    texts = [("one two three four five six " * 60, drawn[0]), ("How do I feed my cats?", drawn[0])]
    letters = sum(len(text) for text, _ in texts)
    price = letters * 16 / 1e6
    with pytest.raises(UserError) as error:
        speak_all(texts)
    assert (
        str(error.value)
        == f"these voices cost about ${price:.3f} ({letters} characters that are not in the cache); to agree,"
        " give 0.03 or more as max_cost_usd."
    )
    assert not server.calls


def test_one_text_that_a_voice_refuses_spoils_no_other(google):
    server = google(lambda n, name: "400" if "three" in name else "ok")
    drawn = read_voices("google")
    budget = Budget(1.0)
    clips = try_speak_all([(text, draw_voice(text, 0, drawn)) for text in TEXTS], budget)
    prices = {"Neural2": 16, "Wavenet": 16, "Standard": 4}
    kinds = [draw_voice(text, 0, drawn).speaker.split("-")[2] for text in TEXTS]
    assert 1.0 - budget.left == pytest.approx(
        sum(len(t) * prices[kind] for t, kind in zip(TEXTS, kinds, strict=True)) / 1e6
    )
    assert [i for i, clip in enumerate(clips) if isinstance(clip, str)] == [2]
    assert "HTTP 400: " in clips[2] and TEXTS[2] in clips[2]
    assert set(server.calls.values()) == {1}


@pytest.mark.parametrize("action", ["401", "403"])
def test_wrong_credentials_end_at_once(action, google):
    server = google(lambda n, name: action)
    with pytest.raises(UserError, match="refuses the credentials or the project"):
        spoken()
    assert server.calls.total() <= 5


def socks_is_missing(*args, **kwargs):
    """Fails as the package requests does where PySocks is not installed."""
    raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("http_proxy", "socks5://alice:hunter2@127.0.0.1:1"),
        ("HTTP_PROXY", "socks5://alice:hunter2@127.0.0.1:1"),
        ("ALL_PROXY", "socks5h://alice:hunter2@127.0.0.1:1"),
        ("http_proxy", "http://"),
        ("RRS_JAX_GOOGLE_TTS_ENDPOINT", "http://.no host"),
    ],
)
def test_a_request_that_cannot_be_sent_ends_at_once(variable, value, google, monkeypatch):
    google()
    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", socks_is_missing)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    start = time.monotonic()
    with pytest.raises(UserError, match="Google Text-to-Speech cannot be asked") as error:
        print(Google(first_wait=9.0).voices)
    assert time.monotonic() - start < 8 and "hunter2" not in str(error.value)


def test_no_credentials_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv("RRS_JAX_GOOGLE_TTS_ENDPOINT", raising=False)
    for name, value in (
        ("HOME", str(tmp_path)),
        ("CLOUDSDK_CONFIG", str(tmp_path)),
        ("NO_GCE_CHECK", "true"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(
        UserError, match="Google's voices need credentials; set GOOGLE_APPLICATION_CREDENTIALS"
    ):
        Google()
