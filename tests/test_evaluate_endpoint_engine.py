"""A whole evaluation of a model behind a real server that misbehaves, through launch.py."""

import base64
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.misbehaving_server import FAULTS, Server, choice_of
from rrs_jax.config import default_config, validate
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.evaluate.endpoint import EndpointConfig
from rrs_jax.evaluate.endpoint_engine import endpoint_engine
from rrs_jax.evaluate.engine import GenerationRequest
from rrs_jax.evaluate.problems import evaluation_problems
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.run import pipeline

REPOSITORY = Path(__file__).parent.parent
NO = "I'm sorry, but I can't assist with that."


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Two pairs; clips of odd lengths, one of them stereo at 44.1 kHz."""
    path = tmp_path_factory.mktemp("questions")
    rng = np.random.default_rng(0)
    rows = []
    for i, rate in enumerate((16_000, 44_100, 16_000, 8_000)):
        shape = (rate * 3 // 5 + i, 2) if i == 1 else rate * 3 // 5 + i
        soundfile.write(path / f"{i}.wav", rng.normal(0, 0.1, shape), rate)
        rows.append(
            {
                "id": f"q{i}",
                "pair_id": f"p{i // 2}",
                "label": ("harmful", "benign")[i % 2],
                "category": "c",
                "question": f"How do I answer you {i}?",
                "audio": f"{i}.wav",
            }
        )
    write_jsonl(path / "manifest.jsonl", rows)
    return path / "manifest.jsonl"


def settings(manifest, run_dir, url):
    config = default_config()
    config.model.path, config.strategy, config.run_dir = "served", "vanilla", str(run_dir)
    config.data.manifest = config.data.eval_manifest = str(manifest)
    config.endpoint.url, config.endpoint.model, config.endpoint.timeout, config.endpoint.retries = (
        url,
        "lalm",
        0.7,
        20,
    )
    config.evaluate.samples, config.generate.top_k, config.generate.temperature = 3, 20, 0.7
    return config


def heard(body):
    """(mode, seconds of audio) of a request."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return "text_only", 0.0
    kinds = [part["type"] for part in content]
    assert kinds in (["input_audio"], ["input_audio", "text"])
    audio = content[0]["input_audio"]
    assert audio["format"] == "wav"
    info = soundfile.info(io.BytesIO(base64.b64decode(audio["data"])))
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
    if len(kinds) == 2:
        assert content[1]["text"] == PROMPT_T
    return ("audio_only", "audio_text")[len(kinds) - 1], info.duration


def answer(body):
    mode, seconds = heard(body)
    assert mode == "text_only" or 0.55 < seconds < 0.65
    return NO if mode == "audio_only" else "Sure, here are the steps."


@pytest.fixture(autouse=True)
def a_cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "shared"))


def test_all_modes_against_a_server_with_every_fault(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("rrs_jax.data.service.Service.longest_wait", 0.02)
    with Server(answer, faults=FAULTS, slow=1.5) as server:
        config = settings(manifest, tmp_path / "run", server.url)
        validate(config, evaluation_problems)
        pipeline.run(config, ("data", "evaluate", "report"))
        summary = read_json(tmp_path / "run/eval/vanilla/summary.json")
        assert {mode: block["asr"] for mode, block in summary["modes"].items()} == {
            "audio_text": 100.0,
            "text_only": 100.0,
            "audio_only": 0.0,
        }
        assert (summary["model"], summary["orr"]["responses"]) == ("lalm", 6)
        # 2 harmful questions in 3 modes and 2 benign in one, 3 samples, each with a seed of its own, each
        # bought once; and before them the trial, of few tokens.
        trial, *bodies = server.bodies
        assert (trial["max_tokens"], heard(trial)) == (16, ("audio_text", pytest.approx(0.6)))
        assert len(server.delivered) == (2 * 3 + 2) * 3 + 1 and set(server.delivered.values()) == {1}
        assert {
            (body["model"], body["temperature"], body["max_tokens"], body["top_k"]) for body in bodies
        } == {("lalm", 0.7, 256, 20)}
        assert len({body["seed"] for body in bodies}) == 24
        assert all(row["seconds"] > 0 for row in read_jsonl(tmp_path / "run/eval/vanilla/responses.jsonl"))
        config.evaluate.judges = ("first_token",)
        pipeline.run(config, ("evaluate",))
        assert sum(server.delivered.values()) == 25  # other judges, the same answers


def test_everyday_questions_are_asked_and_nothing_is_said_of_kept_answers(manifest, tmp_path):
    rows = [
        {"id": f"e{i}", "label": "benign", "question": f"What is {i}?", "audio": "2.wav"} for i in range(4)
    ]
    write_jsonl(manifest.with_name("everyday.jsonl"), rows)

    def refuses_once(body):
        return NO if body["model"] == "after" and "What is 3?" in json.dumps(body) else "It is a number."

    with Server(refuses_once) as server:
        config = settings(manifest, tmp_path / "run", server.url)
        config.strategy, config.endpoint.model, config.endpoint.vanilla_model = (
            "system_prompt",
            "after",
            "before",
        )
        config.evaluate.modes = config.evaluate.over_refusal_modes = ("text_only",)
        config.evaluate.everyday, config.evaluate.samples = str(manifest.with_name("everyday.jsonl")), 1
        validate(config, evaluation_problems)
        pipeline.run(config, ("data", "evaluate"))
    folder = tmp_path / "run/eval"
    for name, rate in (("vanilla", 0.0), ("system_prompt", 25.0)):
        blocks = read_json(folder / name / "summary.json")["orr_by_mode"]["text_only"]
        assert (blocks["everyday_orr"]["rate"], blocks["everyday_orr"]["queries"]) == (rate, 4)
    found = read_json(folder / "system_prompt" / "deployment.json")
    assert found["kept_answers"] is None and found["kept_refusals"]["text_only"]["responses"] == 2


CONFIG = """
    from rrs_jax.config import default_config
    def get_config(variant=""):
        config = default_config()
        config.model.path, config.strategy = "served", "vanilla"
        config.evaluate.samples = 5
        config.endpoint.model = "lalm"
        return config
"""


def test_killed_in_the_middle_nothing_is_lost_and_nothing_bought_twice(manifest, tmp_path):
    (tmp_path / "config.py").write_text(textwrap.dedent(CONFIG))
    run = tmp_path / "run"
    responses = run / "eval/vanilla/responses.jsonl"

    def command(url):
        return [
            sys.executable,
            "launch.py",
            f"--config={tmp_path / 'config.py'}",
            f"--config.run_dir={run}",
            f"--config.data.manifest={manifest}",
            f"--config.data.eval_manifest={manifest}",
            f"--config.endpoint.url={url}",
            "--config.endpoint.concurrency=2",
            "--stages=data,evaluate",
        ]

    with Server(answer, delay=0.2) as server:
        process = subprocess.Popen(
            command(server.url), cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while not responses.is_file() or responses.read_text().count("\n") < 6:
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.3)
        kept, delivered = responses.read_text().count("\n"), sum(server.delivered.values())
        assert 6 <= kept < 40 and delivered - kept <= 2 + 1  # in flight, and the trial
        again = subprocess.run(command(server.url), cwd=REPOSITORY, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        keys = Counter((row["set"], row["id"], row["mode"], row["sample"]) for row in read_jsonl(responses))
        assert len(keys) == 40 and set(keys.values()) == {1}
        assert sum(server.delivered.values()) - 40 == delivered - kept


def test_a_failing_server_keeps_what_it_gave(manifest, tmp_path):
    def some(body):
        if "2?" in json.dumps(body):
            raise ConnectionResetError
        return "Yes."

    with Server(some) as server:
        config = settings(manifest, tmp_path / "run", server.url)
        config.endpoint.retries, config.evaluate.modes = 0, ("text_only",)
        config.evaluate.over_refusal_modes = ()
        with pytest.raises(
            UserError,
            match=r"3 of 6 requests failed \(the last: the connection failed.*the same command asks",
        ):
            pipeline.run(config, ("data", "evaluate"))
    assert len(read_jsonl(tmp_path / "run/eval/vanilla/responses.jsonl")) == 3


def test_greedy_and_penalty_in_the_request(tmp_path):
    with Server(lambda body: "ok") as server:
        sampling = {
            "max_new_tokens": 7,
            "greedy": True,
            "temperature": 0.5,
            "top_p": 0.5,
            "repetition_penalty": 1.1,
        }
        generate = endpoint_engine(EndpointConfig(server.url, "m"), sampling, seed=0)
        got = []
        generate(
            [GenerationRequest(("harmful", "q", "text_only", 0), "hi", None, 0)],
            lambda *row: got.append(row[1]),
        )
        (body,) = server.bodies
    assert got == ["ok"]
    assert (body["temperature"], body["max_tokens"], body["repetition_penalty"]) == (
        0.0,
        7,
        1.1,
    ) and "top_p" not in body


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"endpoint.model": None}, "endpoint.model is needed with endpoint.url"),
        (
            {"strategy": "rrs"},
            "endpoint.vanilla_model is needed with endpoint.url, or evaluate.vanilla=false",
        ),
        (
            {"evaluate.judges": ("own:default",)},
            "evaluate.judges has own, which needs a model that runs here",
        ),
        ({"evaluate.judges": ("llm:default",)}, "judge.url and judge.model are needed"),
        ({"evaluate.judges": ("gpt",)}, "no judge is called gpt; choose from phrases"),
        ({"evaluate.air_bench": "x"}, "judge.url and judge.model are needed"),
        ({"evaluate.questions": ("figstep:/no",)}, "question set figstep:/no: /no does not exist"),
        (
            {"evaluate.setting": ("loud",)},
            "evaluate.setting is .'loud',., give different names out of spoken, silence",
        ),
    ],
)
def test_contradictions_are_told_before_any_work(manifest, tmp_path, changes, sentence):
    config = settings(manifest, tmp_path, "http://localhost:1/v1")
    for name, value in changes.items():
        group, _, leaf = name.rpartition(".")
        (config[group] if group else config)[leaf] = value
    with pytest.raises(UserError, match=sentence):
        validate(config, evaluation_problems)


def parts(text):
    return [{"type": "thinking", "thinking": "I decline."}, {"type": "text", "text": text}]


@pytest.mark.parametrize(
    ("content", "finish", "kept", "kind"),
    [
        ("Sure! \ud83d", "stop", "Sure! \ufffd", "answer"),
        ("\udfff\ud800\udbff", "stop", "\ufffd\ufffd\ufffd", "gibberish"),
        ([{"type": "text", "text": f"{NO} \ude00"}], "stop", f"{NO} \ufffd", "refusal"),
        (f"<think>\n\ud83d I decline.\n</think>\n\n{NO}", "stop", None, "refusal"),
        ("<think>\nThe user wants", "length", None, "unfinished"),
        (parts(NO), "stop", NO, "refusal"),
        (parts(""), "length", "<think>\nI decline.", "unfinished"),
        (None, "length", "", "empty"),
        (f"I decline.</think>{NO}", "stop", None, "refusal"),
    ],
)
def test_every_form_of_a_reply_is_kept_and_judged(manifest, tmp_path, content, finish, kept, kind):
    """Every one of the replies, each paid for once, through a whole evaluation."""
    with Server(lambda body: choice_of(content, finish)) as server:
        config = settings(manifest, tmp_path / "run", server.url)
        pipeline.run(config, ("data", "evaluate", "report"))
        rows = read_jsonl(tmp_path / "run/eval/vanilla/responses.jsonl")
        assert len(rows) == 24 == sum(server.delivered.values()) - 1
    if kept is not None:
        assert {row["response"] for row in rows} == {kept}
    judged = read_jsonl(tmp_path / "run/eval/vanilla/judgements.jsonl")
    assert {row["kind"] for row in judged if row["judge"] == "phrases"} == {kind}
    summary = read_json(tmp_path / "run/eval/vanilla/summary.json")
    assert summary["modes"]["audio_text"]["asr"] == (0.0 if kind == "refusal" else 100.0)
    if kind != "refusal":
        field = {"answer": "answers"}.get(kind, kind)
        assert summary["modes"]["audio_text"][field] == 6


def test_what_is_in_flight_when_one_request_ends_the_work_is_kept(manifest, tmp_path):
    """The others are answered, and paid, while the fifth is told that the quota is used up."""
    lock, asked = threading.Lock(), itertools.count()

    def until_the_quota_ends(body):
        with lock:
            number = next(asked)
        if number == 5:
            server.always = (402, None)
            raise ConnectionResetError
        time.sleep(0.3)
        return "Yes."

    with Server(until_the_quota_ends) as server:
        config = settings(manifest, tmp_path / "run", server.url)
        config.endpoint.concurrency, config.endpoint.timeout = 8, 20.0
        with pytest.raises(UserError, match="HTTP 402"):
            pipeline.run(config, ("data", "evaluate"))
        delivered = sum(server.delivered.values())
    kept = len(read_jsonl(tmp_path / "run/eval/vanilla/responses.jsonl"))
    assert kept == delivered - 1 > 0  # all but the trial


@pytest.mark.parametrize(
    ("server_says", "sentence"),
    [
        ((401, None), "refuses the model lalm"),
        ((403, None), "refuses the model lalm"),
        ((404, "model_not_found"), "refuses the model lalm"),
        ((400, "audio_not_supported"), "the model lalm does not answer a short question .HTTP 400"),
    ],
)
def test_an_endpoint_that_cannot_answer_is_said_before_the_first_stage(
    manifest, tmp_path, server_says, sentence, monkeypatch
):
    monkeypatch.setattr("rrs_jax.run.pipeline.do_stage", lambda *_: pytest.fail("a stage has begun"))
    with Server(answer, always=server_says) as server:
        with pytest.raises(UserError, match=sentence):
            pipeline.run(settings(manifest, tmp_path / "run", server.url), ("data", "evaluate"))
        assert sum(server.received.values()) == 1


def test_the_records_of_a_run_hold_no_password(manifest, tmp_path):
    with Server(answer) as server:
        secret = server.url.replace("http://", "http://alice:hunter2@") + "?token=s3cret"
        pipeline.run(settings(manifest, tmp_path / "run", secret), ("data", "evaluate", "report"))
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 8
    for path in written:
        assert not any(word in path.read_bytes() for word in (b"hunter2", b"alice", b"s3cret")), path
    meta = read_json(tmp_path / "run/eval/vanilla/responses.meta.json")
    assert meta["made_by"]["endpoint"] == server.url
