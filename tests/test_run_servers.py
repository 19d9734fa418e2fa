"""Servers that a run's evaluation needs are asked one small question before its first stage."""

import json

import pytest

from helpers.misbehaving_server import Server, choice_of
from helpers.sweeps import sweep_config
from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.run import pipeline
from rrs_jax.run.servers import try_servers
from rrs_jax.run.sweep import run_sweep

VERDICT = "refusal: no\nharmful: no"
ALL = {"data", "extract", "train", "evaluate", "export", "report"}


@pytest.fixture(autouse=True)
def a_cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "shared"))
    monkeypatch.setattr("rrs_jax.data.service.Service.longest_wait", 0.02)


def answer(body):
    """Scores for AIR-Bench, a verdict for a rubric, an answer for everything else."""
    asked = json.dumps(body["messages"])
    if "assistant 1's answer" in asked:
        return "9 9"
    return VERDICT if "Give two labels" in asked else "Well."


def config_of(server, **fields):
    config = default_config()
    config.judge.url, config.judge.model = server.url, "judge"
    config.update_from_flattened_dict(fields)
    return config


ENDPOINT = {"endpoint.model": "tuned", "endpoint.vanilla_model": "vanilla"}
JUDGES = {"evaluate.judges": ("phrases", "llm:default", "llm:xstest@other")}


@pytest.mark.parametrize(
    ("fields", "wanted", "models"),
    [
        ({}, ALL, []),
        (JUDGES, ALL, ["judge", "other"]),
        (JUDGES, ALL - {"evaluate"}, []),
        (ENDPOINT, ALL - {"train"}, ["tuned", "vanilla"]),
        (ENDPOINT, ALL, ["vanilla"]),  # the trained model is not there yet
        (ENDPOINT | {"evaluate.vanilla": False}, ALL - {"train"}, ["tuned"]),
        (ENDPOINT | {"strategy": "vanilla"}, {"data", "evaluate"}, ["tuned"]),
        ({"evaluate.air_bench": "folder"}, ALL, ["judge"]),
        (ENDPOINT | JUDGES | {"evaluate.air_bench": "folder"}, ALL, ["vanilla", "judge", "other", "judge"]),
    ],
)
def test_each_server_that_is_needed_is_asked_once(fields, wanted, models):
    with Server(lambda body: "1_full_compliance" if body["model"] == "other" else answer(body)) as server:
        config = config_of(server, **fields)
        if "endpoint.model" in fields:
            config.endpoint.url = server.url
        for _ in range(2):  # the second run, resumed, asks nothing
            try_servers(config, wanted)
            assert [body["model"] for body in server.bodies] == models
        assert all(len(json.dumps(body)) < 40_000 for body in server.bodies)


@pytest.mark.parametrize("mode", ["audio_text", "text_only", "audio_only"])
def test_the_endpoint_is_asked_as_the_run_will_ask(mode):
    with Server(answer) as server:
        config = config_of(server, **ENDPOINT, **{"evaluate.modes": (mode,), "generate.top_k": 5})
        config.endpoint.url = server.url
        try_servers(config, {"evaluate"})
        content = server.bodies[0]["messages"][0]["content"]
    kinds = ["text"] if isinstance(content, str) else [part["type"] for part in content]
    expected = {"audio_text": ["input_audio", "text"], "text_only": ["text"], "audio_only": ["input_audio"]}
    assert kinds == expected[mode] and server.bodies[0]["top_k"] == 5


@pytest.mark.parametrize(
    ("choice", "always", "sentence"),
    [
        (None, (401, None), "refuses the model judge .HTTP 401"),
        (None, (404, None), "refuses the model judge .HTTP 404"),
        (None, (429, "insufficient_quota"), "refuses the model judge .HTTP 429"),
        (None, (400, "unsupported_parameter"), "does not answer a short question .HTTP 400"),
        (
            choice_of("<think>\nIs it", "length"),
            None,
            "trivial answer cannot be read: '<think> Is it'.*more tokens",
        ),
        (choice_of("I cannot help with that."), None, "trivial answer cannot be read"),
    ],
)
@pytest.mark.parametrize("air_bench", [False, True])
def test_a_judge_that_cannot_judge_is_said_before_the_first_stage(
    choice, always, sentence, air_bench, whole_folder, sound_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "do_stage", lambda *_: pytest.fail("a stage has begun"))
    config = sweep_config(whole_folder, sound_files, tmp_path)
    with Server(lambda body: choice, always=always) as server:
        config.judge.url, config.judge.model = server.url, "judge"
        if air_bench:
            config.evaluate.air_bench = str(tmp_path)
        else:
            config.evaluate.judges = ("phrases", "llm:default")
        with pytest.raises(UserError, match=sentence):
            pipeline.run(config, ("data", "extract", "train", "evaluate"))
        assert sum(server.received.values()) <= 3
    (tmp_path / "sweep.py").write_text(
        "def runs(config):\n    yield 'rrs', {}\n    yield 'other', {'seed': 1}\n"
    )
    with Server(lambda body: choice, always=always) as server:
        config.judge.url = server.url
        with pytest.raises(UserError, match=sentence):
            run_sweep(config, str(tmp_path / "sweep.py"), ("data", "extract", "train", "evaluate"))
