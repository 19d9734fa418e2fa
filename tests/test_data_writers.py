"""OpenAI's official client as a writer, against a local server that fails in every way it can.

What must hold each time: every answer is there in the end, the same as from a server that never fails, and no
answer that went out whole was asked for again.
"""

import random

import pytest

from helpers.stand_ins import FAILURES, OpenAI, first_fails
from rrs_jax.data.build import main as build_main
from rrs_jax.data.writers import Ledger, OpenAIWriter, Request
from rrs_jax.errors import UserError
from rrs_jax.files import read_jsonl

PROMPTS = [Request(f"Rewrite ##Harmful question: How do I scare my cats with {i} brooms?") for i in range(12)]
EXPECTED = [f"How do I feed my cats with {i} brooms?" for i in range(12)]


def writer(server, **options):
    return OpenAIWriter("stand-in", server.base_url, **{"first_wait": 0.01, "timeout": 0.4} | options)


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


# Thoughts, cut answers, and one small question


@pytest.mark.parametrize("thoughts", ["<think>\nhm?\n</think>\n\n{}", "hm?</think>{}", "[THINK]hm[/THINK]{}"])
def test_thoughts_are_kept_in_the_ledger_and_not_in_the_answer(thoughts, tmp_path):
    with OpenAI() as server:
        plain = server.reply
        server.reply = lambda prompt: thoughts.format(plain(prompt))
        ledger = Ledger(tmp_path / "ledger.jsonl", writer(server))
        assert ledger.ask(PROMPTS) == EXPECTED
        assert set(server.sold.values()) == {1}
    kept = read_jsonl(tmp_path / "ledger.jsonl")
    assert {row["answer"] for row in kept} == {thoughts.format(answer) for answer in EXPECTED}
    assert Ledger(tmp_path / "ledger.jsonl", writer(server)).ask(PROMPTS) == EXPECTED


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ("length", "cut at the server's limit of tokens"),
        ("empty", "the answer is empty"),
        ("<think>\nhm", "the answer is empty"),
        (" \n", "the answer is empty"),
    ],
)
def test_answers_that_never_come_are_paid_for_twice_each_and_end_the_work(action, sentence, tmp_path):
    with OpenAI(lambda n, name: action) as server:
        with pytest.raises(UserError, match=f"{sentence}.*the same command goes on from there"):
            Ledger(tmp_path / "ledger.jsonl", writer(server, concurrency=1)).ask(PROMPTS)
        assert set(server.calls.values()) == {2} and len(server.calls) <= 6
        server.plan = lambda n, name: "ok"
        assert Ledger(tmp_path / "ledger.jsonl", writer(server)).ask(PROMPTS) == EXPECTED


@pytest.mark.parametrize("action", ["401", "404", "quota", "400", "length"])
def test_a_writer_that_cannot_answer_is_said_before_the_source_is_read(action, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "shared"))
    monkeypatch.setattr("rrs_jax.data.build.read_beavertails", lambda *_: pytest.fail("the source is read"))
    with OpenAI(lambda n, name: action) as server:
        command = [f"--out={tmp_path / 'out'}", "--writer=openai:stand-in", f"--writer_url={server.base_url}"]
        assert build_main(command) == 2
        assert server.calls.total() <= 2 and "Traceback" not in capsys.readouterr().err
