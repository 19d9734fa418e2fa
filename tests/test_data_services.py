"""The official clients of OpenAI and Google against local servers that fail in every way they can.

What must hold each time: every answer is there in the end, the same as from a server that never fails, and no
answer that went out whole was asked for again.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.stand_ins import FAILURES, GoogleTTS, OpenAI
from helpers.synthetic_beavertails import source_rows
from rrs_jax.data import voices as voices_module
from rrs_jax.data.engines import ENGINES
from rrs_jax.data.google_voice import Google
from rrs_jax.data.service import Busy, GaveUp, Refused, Service, seconds_of
from rrs_jax.data.speech import Budget, speak_all, try_speak_all
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.data.writers import Ledger, OpenAIWriter, Request
from rrs_jax.errors import UserError
from rrs_jax.files import read_jsonl

ROOT = Path(__file__).parent.parent
PROMPTS = [Request(f"Rewrite ##Harmful question: How do I scare my cats with {i} brooms?") for i in range(12)]
EXPECTED = [f"How do I feed my cats with {i} brooms?" for i in range(12)]
TEXTS = [f"How do I feed {name} young cats?" for name in "one two three four five six seven eight".split()]


def first_fails(*actions):
    """Lets each prompt's first calls fail in these ways, then answers."""
    return lambda n, name: actions[n] if n < len(actions) else "ok"


def writer(server, **options):
    return OpenAIWriter("stand-in", server.base_url, **{"first_wait": 0.01, "timeout": 0.4} | options)


# The rewriter's endpoint


@pytest.mark.parametrize("failure", [*FAILURES, "length", "  "])
def test_every_failure_is_got_over(failure, tmp_path):
    with OpenAI(first_fails(failure)) as server:
        ledger = Ledger(tmp_path / "ledger.jsonl", writer(server, concurrency=6))
        assert ledger.ask(PROMPTS) == EXPECTED
        assert set(server.calls.values()) == {2} and server.sold == dict.fromkeys(
            [r.prompt for r in PROMPTS], 1
        )
    again = Ledger(tmp_path / "ledger.jsonl", writer(server))  # the server is gone
    assert again.ask(PROMPTS) == EXPECTED
    assert len(read_jsonl(tmp_path / "ledger.jsonl")) == len(PROMPTS)


def test_all_failures_together(tmp_path):
    plans = random.Random(0)
    ways = {request.prompt: plans.sample(FAILURES, 4) for request in PROMPTS}
    with OpenAI(lambda n, name: ways[name][n] if n < 4 else "ok") as server:
        ledger = Ledger(tmp_path / "ledger.jsonl", writer(server))
        assert ledger.ask(PROMPTS) == EXPECTED
        assert set(server.sold.values()) == {1}


def test_a_service_that_is_down_ends_the_work_and_nothing_is_lost(tmp_path):
    healthy = {request.prompt for request in PROMPTS[:5]}
    with OpenAI(lambda n, name: "ok" if name in healthy else "500") as server:
        ledger = Ledger(tmp_path / "ledger.jsonl", writer(server, tries=2, concurrency=1))
        with pytest.raises(UserError) as error:
            ledger.ask(PROMPTS)
        assert "gave no answer in 2 tries, at last: HTTP 500: " in str(error.value)
        assert str(error.value).endswith("What was answered is kept; the same command goes on from there.")
        assert len(read_jsonl(tmp_path / "ledger.jsonl")) == 5
        server.plan = lambda n, name: "ok"
        assert Ledger(tmp_path / "ledger.jsonl", writer(server)).ask(PROMPTS) == EXPECTED
        assert set(server.sold.values()) == {1}


def test_a_few_unanswered_are_named(tmp_path):
    unlucky = PROMPTS[3].prompt
    with OpenAI(lambda n, name: "503" if name == unlucky else "ok") as server:
        with pytest.raises(
            UserError, match="1 of 12 questions have no answer yet; those answered are in .*ledger.jsonl"
        ):
            Ledger(tmp_path / "ledger.jsonl", writer(server, tries=2)).ask(PROMPTS)
        assert len(read_jsonl(tmp_path / "ledger.jsonl")) == 11


def test_a_refused_question_is_kept_as_refused(tmp_path):
    with OpenAI(lambda n, name: "400" if name == PROMPTS[2].prompt else "ok") as server:
        ledger = Ledger(tmp_path / "ledger.jsonl", writer(server))
        assert ledger.ask(PROMPTS) == [None if i == 2 else text for i, text in enumerate(EXPECTED)]
        assert server.calls[PROMPTS[2].prompt] == 1  # a 400 is never repeated
        assert Ledger(tmp_path / "ledger.jsonl", writer(server)).ask(PROMPTS[2:3]) == [None]
        assert server.calls[PROMPTS[2].prompt] == 1


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ("401", "check OPENAI_API_KEY"),
        ("403", "refuses the key"),
        ("404", "check --writer and --writer_url"),
        ("quota", "quota is used up"),
    ],
)
def test_what_no_repeat_helps_ends_at_once(action, sentence, tmp_path):
    with OpenAI(lambda n, name: action) as server:
        with pytest.raises(UserError, match=sentence):
            Ledger(tmp_path / "ledger.jsonl", writer(server, concurrency=2)).ask(PROMPTS)
        assert server.calls.total() <= 4


def test_no_key_is_one_sentence(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        OpenAIWriter("gpt-4-turbo")


def test_concurrency_is_bounded(tmp_path):
    with OpenAI(delay=0.05) as server:
        Ledger(tmp_path / "ledger.jsonl", writer(server, concurrency=3)).ask(PROMPTS)
        assert server.busiest == 3


def test_a_cut_last_line_of_the_ledger_is_asked_for_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with OpenAI() as server:
        Ledger(path, writer(server)).ask(PROMPTS[:3])
        path.write_bytes(path.read_bytes()[:-9])
        Ledger(path, writer(server)).ask(PROMPTS[:3])
        assert sorted(server.sold.values()) == [1, 1, 2]


# The service's clock


def test_waits_double_and_a_service_may_ask_for_its_own(monkeypatch):
    service = Service("it", tries=5, first_wait=1.0)
    service.longest_wait = 5.0
    waits = []
    monkeypatch.setattr(service._stop, "wait", lambda seconds: waits.append(seconds))
    answers = iter([Busy("a"), Busy("b"), Busy("c", seconds=3.0), Busy("d", seconds=99.0)])

    def call():
        raise next(answers, None) or StopIteration

    with pytest.raises(StopIteration):
        service.call(call)
    waits = [seconds for seconds in waits if seconds > 0.01]
    assert 0.7 < waits[0] < 1.3 and 1.4 < waits[1] < 2.6 and waits[2:] == pytest.approx([3.0, 5.0], abs=0.01)


def test_one_that_is_told_to_wait_makes_all_wait():
    service, called = Service("it", concurrency=2), []

    def call(i):
        called.append((i, time.monotonic()))
        if len(called) == 1:
            raise Busy("slow down", seconds=0.3, everyone=True)
        return i

    with pytest.raises(GaveUp):
        Service("it", tries=1).call(lambda: (_ for _ in ()).throw(Busy("x", everyone=True)))
    assert service.call(lambda: call(0)) == 0
    service.pause(0.3)
    assert dict(service.each(lambda i: service.call(lambda: call(i)), [1, 2])) == {1: 1, 2: 2}
    moments = [moment for _, moment in called]
    assert moments[1] - moments[0] > 0.29 and min(moments[2:]) - moments[1] > 0.29


def test_headers_of_time():
    assert [seconds_of(text) for text in ("2", "1.5", "20ms", "6m0s", "1h2m3s", "0")] == [
        2,
        1.5,
        0.02,
        360,
        3723,
        0,
    ]
    assert [seconds_of(text) for text in (None, "", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "s")] == [None] * 5


def test_an_interruption_finishes_what_is_under_way():
    service, done = Service("it", concurrency=3, first_wait=30.0), []

    def work(i):
        if i == 2:
            service.call(lambda: (_ for _ in ()).throw(Busy("wait long")))
        time.sleep(0.1)
        done.append(i)

    start = time.monotonic()
    stream = service.each(work, range(100))
    next(stream)
    stream.close()  # as an exception in the loop does
    assert time.monotonic() - start < 5 and {0, 1} <= set(done) and len(done) < 10
    assert service.call(lambda: "usable again") == "usable again"
    with pytest.raises(GaveUp, match="it gave no answer in 2 tries, at last: no"):
        Service("it", tries=2, first_wait=0.001).call(lambda: (_ for _ in ()).throw(Busy("no")))
    assert issubclass(GaveUp, Refused)


# Google's voices


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


# Killed in the middle


def command(source, out, openai, google, cache):
    environment = os.environ | {"RRS_JAX_CACHE": str(cache), "RRS_JAX_GOOGLE_TTS_ENDPOINT": google.url}
    flags = [
        "--source",
        source,
        "--out",
        out,
        "--sets=mirror",
        "--per_category=1",
        "--writer=openai:stand-in",
        "--voices=google",
        f"--writer_url={openai.base_url}",
        "--max_cost_usd=1",
        "--concurrency=1",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "rrs_jax.data.build", *map(str, flags)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_in_the_middle_and_begun_again(tmp_path):
    """While it asks and while it speaks; in the end it gives what an undisturbed run gives."""
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in source_rows(4)))
    with OpenAI() as openai, GoogleTTS() as google:
        whole = command(source, tmp_path / "whole", openai, google, tmp_path / "cache-whole")
        assert whole.wait() == 0, whole.stdout.read()
        asked, bought = dict(openai.sold), dict(google.sold)
    expected = tmp_path / "whole" / "mirror"

    with OpenAI() as openai, GoogleTTS() as google:
        process, started = None, threading.Event()

        def begin():
            started.clear()
            return command(source, tmp_path / "out", openai, google, tmp_path / "cache")

        def kill_at(limit, how):
            def before(total):
                if total == limit:
                    started.wait(10)
                    process.send_signal(how)
                    if how == signal.SIGKILL:
                        process.wait(10)

            return before

        for server, limit, how in (
            (openai, 9, signal.SIGKILL),
            (google, 9, signal.SIGKILL),
            (google, 22, signal.SIGINT),
        ):
            server.before = kill_at(limit, how)
            process = begin()
            started.set()
            assert process.wait(60) != 0
            if how == signal.SIGINT:
                assert process.stdout.read().rstrip().endswith("interrupted; the same command resumes")
            server.before = lambda total: None
        process = begin()
        assert process.wait(60) == 0, process.stdout.read()
        # A SIGKILL loses at most the answers under way: one of the writer's, eight of the voice's. SIGINT
        # loses none.
        for sold, wanted, under_way in ((openai.sold, asked, 1), (google.sold, bought, 8)):
            assert set(sold) == set(wanted)
            assert sum(sold.values()) <= len(wanted) + under_way
    for path in [expected / "manifest.jsonl", *sorted((expected / "audio").iterdir())]:
        assert (tmp_path / "out" / "mirror" / path.relative_to(expected)).read_bytes() == path.read_bytes()
