"""Judges that ask a model, against a real server that misbehaves, and local classifiers."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import transformers

from helpers.misbehaving_server import FAULTS, Server
from helpers.responses import QUESTION, responses
from rrs_jax.data.service import Refused, Service
from rrs_jax.errors import UserError
from rrs_jax.evaluate import Judgement, JudgeSettings, judge_responses, make_judges, summarise
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig
from rrs_jax.evaluate.judges.judge import Exchange
from rrs_jax.evaluate.judges.model_judges import LocalModel
from rrs_jax.files import read_jsonl, write_jsonl
from rrs_jax.testing.tokenizer import write_tokenizer


def settings(server, tmp_path, **changes):
    values = {"concurrency": 4, "timeout": 0.5, "retries": 20}
    endpoint = EndpointConfig(server.url, "judge-1", **values | changes)
    return JudgeSettings(endpoint, cache=tmp_path / "cache")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch, tmp_path):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "shared"))
    monkeypatch.setattr("rrs_jax.data.service.Service.longest_wait", 0.02)


def verdict(body):
    """A judge of the default rubric: by a word in the answer that it is shown."""
    answer = re.search(
        r"\[answer begins\]\n(.*)\n\[answer ends\]", body["messages"][-1]["content"], re.DOTALL
    )[1]
    refusal, harmful = "no thanks" in answer, "step one" in answer
    return f"refusal: {'yes' if refusal else 'no'}\nharmful: {'yes' if harmful else 'no'}"


def test_every_fault_of_the_server_is_survived_and_nothing_is_bought_twice(tmp_path):
    texts = ["no thanks", "step one", "a walk helps", "", QUESTION, "no thanks"]
    with Server(verdict, faults=FAULTS, slow=1.0) as server:
        (judge,) = make_judges(["llm:default"], settings(server, tmp_path))
        rows = judge_responses(tmp_path / "judgements.jsonl", responses(texts), [judge])
        assert [(row["refusal"], row["harmful"], row["kind"]) for row in rows] == [
            (True, False, "refusal"),
            (False, True, "answer"),
            (False, False, "answer"),
            (False, False, "empty"),
            (False, False, "transcription"),
            (True, False, "refusal"),
        ]
        assert len(server.delivered) == 4 and set(server.delivered.values()) == {1}
        assert set(server.received.values()) == {len(FAULTS) + 1}
        assert judge_responses(tmp_path / "judgements.jsonl", responses(texts), [judge]) == rows
        judge_responses(
            tmp_path / "elsewhere.jsonl", responses(texts), [judge]
        )  # another run, the same content
        assert sum(server.delivered.values()) == 4


def test_the_request_holds_model_key_and_temperature(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Server(verdict) as server:
        asked = settings(server, tmp_path, key_variable="MY_KEY")
        make_judges(["llm:default@judge-2"], asked)[0].judge(QUESTION, "{question} {response}", "harmful")
        assert server.keys == {"Bearer secret"}
        (body,) = server.bodies
        assert (body["model"], body["temperature"]) == ("judge-2", 0.0)
        assert "[answer begins]\n{question} {response}\n[answer ends]" in body["messages"][-1]["content"]


def test_a_request_that_is_told_to_wait_pauses_all_requests(tmp_path, monkeypatch):
    paused = []
    monkeypatch.setattr(Service, "pause", lambda self, seconds: paused.append(seconds))
    with Server(verdict, faults=("429", "500")) as server:
        (judge,) = make_judges(["llm:default"], settings(server, tmp_path))
        judge.judge(QUESTION, "step one", "harmful")
    assert paused == [0.01]  # the Retry-After of the 429; a 500 says nothing about other requests


def test_requests_run_at_the_same_time_but_not_more_than_asked(tmp_path):
    with Server(verdict, delay=0.05) as server:
        (judge,) = make_judges(["llm:default"], settings(server, tmp_path, concurrency=5))
        judge_responses(tmp_path / "j.jsonl", responses([f"walk {i}" for i in range(20)]), [judge])
        assert 2 <= server.most_at_once <= 5


def test_unreadable_verdicts_are_asked_again_then_counted_and_never_safe(tmp_path):
    def mumble(body):
        text = body["messages"][-1]["content"]
        reminded = "Answer with exactly two lines" in text
        if "never" in text.split("[answer begins]")[1].split("[answer ends]")[0]:
            return "I cannot say."
        return verdict(body) if reminded else "refusal: yes\nharmful:"

    with Server(mumble) as server:
        (judge,) = make_judges(["llm:default"], settings(server, tmp_path))
        rows = judge_responses(tmp_path / "j.jsonl", responses(["step one", "never"]), [judge])
        assert [(row["refusal"], row["harmful"], row["kind"]) for row in rows] == [
            (False, True, "answer"),
            (None, None, "unreadable"),
        ]
        block = summarise(rows, [judge], name="x", model="m", strategy="s", samples=2)["modes"]["audio_text"]
        assert (block["asr"], block["responses"], block["unjudged"]) == (100.0, 1, 1)
        # Two tries for the first; for the second a first, and two with the reminder: drawn anew, not from the
        # cache.
        assert sorted(server.delivered.values()) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "invalid_api_key"), (402, None), (404, "model_not_found"), (429, "insufficient_quota")],
)
def test_what_cannot_succeed_ends_at_once(tmp_path, status, code):
    with Server(verdict, always=(status, code)) as server:
        (judge,) = make_judges(["llm:default"], settings(server, tmp_path))
        with pytest.raises(
            UserError,
            match=rf"refuses the model judge-1 \(HTTP {status}: .*check the address, the model's name",
        ):
            judge_responses(tmp_path / "j.jsonl", responses([f"{i}" for i in range(50)]), [judge])
        assert sum(server.received.values()) <= 8


def test_a_dead_server_is_given_up_and_named(tmp_path, monkeypatch):
    with Server(verdict) as server:
        pass
    (judge,) = make_judges(["llm:default"], settings(server, tmp_path, retries=1))
    with pytest.raises(UserError, match=r"does not answer a short question \(the connection failed"):
        judge_responses(tmp_path / "j.jsonl", responses([f"{i}" for i in range(40)]), [judge])
    monkeypatch.setattr(judge, "try_out", lambda: None)  # it dies behind the trial
    with pytest.raises(
        UserError, match=r"20 of 40 requests failed and it counts as gone \(the last: the connection failed"
    ):
        judge_responses(tmp_path / "j.jsonl", responses([f"{i}" for i in range(40)]), [judge])


def test_one_refused_request_does_not_lose_the_others(tmp_path):
    config = EndpointConfig("", "m", concurrency=2, retries=0)
    with Server(verdict, always=(400, "too_long")) as server:
        endpoint = Endpoint(EndpointConfig(server.url, "m", retries=3), None)
        with pytest.raises(Refused, match="HTTP 400: no"):
            endpoint.ask([{"role": "user", "content": "x"}])
        assert sum(server.received.values()) == 1
    got = {}

    def request(i, endpoint):
        if i == 3:
            raise Refused("HTTP 400: too long")
        return str(i)

    endpoint = Endpoint(EndpointConfig("http://127.0.0.1:9/v1", "m", concurrency=config.concurrency), None)
    with pytest.raises(
        UserError,
        match=r"1 of 6 requests failed \(the last: HTTP 400: too long\); all other replies are kept",
    ):
        endpoint.ask_all([lambda e, i=i: request(i, e) for i in range(6)], got.__setitem__)
    assert got == {i: str(i) for i in range(6) if i != 3}


KILLED = """
    import sys
    from pathlib import Path
    from rrs_jax.evaluate import EndpointConfig, JudgeSettings, judge_responses, make_judges
    from rrs_jax.files import read_jsonl
    folder, url = Path(sys.argv[1]), sys.argv[2]
    settings = JudgeSettings(EndpointConfig(url, "judge-1", concurrency=3), cache=folder / "cache")
    judges = make_judges(["llm:default"], settings)
    judge_responses(folder / "j.jsonl", read_jsonl(folder / "r.jsonl"), judges)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on(tmp_path, kind):
    write_jsonl(tmp_path / "r.jsonl", responses([f"walk {i}" for i in range(30)]))
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    with Server(verdict, delay=0.1) as server:
        process = subprocess.Popen([*command, server.url], stderr=subprocess.DEVNULL)
        while sum(server.delivered.values()) < 8:
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, kind)
        process.wait()
        time.sleep(0.2)
        kept = len(list((tmp_path / "cache").rglob("*.json")))
        assert 8 - 3 <= kept < 30
        subprocess.run([*command, server.url], check=True, stderr=subprocess.DEVNULL)
        # What was in flight at the kill may have been answered to nobody; with Ctrl-C even that is kept.
        # One more is the trial before them, which the second run does not repeat.
        assert sum(server.delivered.values()) - 31 <= (3 if kind == signal.SIGKILL else 0)
        assert len(server.delivered) == 31
    assert len(read_jsonl(tmp_path / "j.jsonl")) == 30


def test_strongreject_scores_have_a_mean(tmp_path):
    def grade(body):
        strong = "step one" in body["messages"][-1]["content"]
        return (
            "refused: 0\nconvincing: 5\nspecific: 5" if strong else "refused: 0\nconvincing: 2\nspecific: 2"
        )

    with Server(grade) as server:
        (judge,) = make_judges(["llm:strongreject"], settings(server, tmp_path))
        rows = judge_responses(tmp_path / "j.jsonl", responses(["step one", "a walk", "", "x"]), [judge])
    block = summarise(rows, [judge], name="x", model="m", strategy="s", samples=2)["modes"]["audio_text"]
    assert (block["asr"], block["mean_score"], block["empty"]) == (25.0, 100 * (1 + 0.25 + 0 + 0.25) / 4, 1)


def test_the_own_model_judges_by_the_same_rubrics():
    seen = []

    def generate(prompts, on_answer):
        for i, (system, text) in reversed(list(enumerate(prompts))):
            seen.append(system)
            on_answer(i, verdict({"messages": [{"content": text}]}) if "mumble" not in text else "Hm.")

    (judge,) = make_judges(["own:default"], JudgeSettings(generate=generate))
    assert judge.judge(QUESTION, "no thanks", "harmful") == Judgement(True, False, "refusal")
    assert judge.judge(QUESTION, "mumble", "harmful") == Judgement(None, None, "unreadable")
    assert len(seen) == 3 and seen[0].startswith("You label the answers")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random causal model of two layers with a chat template, as a classifier's folder has it."""
    path = tmp_path_factory.mktemp("classifier")
    write_tokenizer(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}verdict:"
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        bos_token_id=None,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(path)
    return path


def greedy(folder, prompt):
    """One prompt, no padding, no batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    for _ in range(16):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return tokenizer.decode(ids[0, -16:], skip_special_tokens=True)


def test_a_local_classifier_answers_prompts_of_unequal_length_as_each_alone(
    classifier, tmp_path, monkeypatch
):
    answers = ["walk", "a much longer answer about walks", "sit"]
    prompts = [f"Q {QUESTION} A {answer} V" for answer in answers]
    rubric = tmp_path / "sorry.toml"
    rubric.write_text(
        f"name = 'sorry'\nversion = '1'\nsource = 'test'\nreminder = 'r'\nfolder = '{classifier}'\n"
        "prompt = 'Q {question} A {response} V'\npattern = '^\\s*(?P<harmful>[01])'\n"
        "[values.harmful]\n1 = true\n0 = false\n"
    )
    (judge,) = make_judges([f"local:{rubric}"])
    continued, seen = {}, []
    model = LocalModel(str(classifier))
    model.answer(prompts, continued.__setitem__, batch_size=3)
    assert continued == {i: greedy(classifier, prompt) for i, prompt in enumerate(prompts)}
    assert len(set(continued.values())) > 1

    def verdicts(self, texts, on_answer, batch_size):
        seen.extend(texts)
        for i, word in enumerate(("1", "0", "x")):
            on_answer(i, word)

    monkeypatch.setattr(LocalModel, "answer", verdicts)
    rows = judge_responses(tmp_path / "j.jsonl", responses(answers), [judge])
    assert seen == prompts and judge.name == "local:sorry" and judge.sees == {"harmful"}
    assert [(row["refusal"], row["harmful"], row["kind"]) for row in rows] == [
        (None, True, "answer"),
        (None, False, "answer"),
        (None, None, "unreadable"),
    ]


def test_llama_guard_reads_its_chat_template(classifier, monkeypatch):
    (judge,) = make_judges([f"llama_guard:{classifier}"])
    prompts = []

    def answer(texts, on_answer, batch_size):
        prompts.extend(texts)
        for i, word in enumerate(("unsafe\nS1", "safe", "hm")):
            on_answer(i, word)

    expected = greedy(classifier, f"[user] {QUESTION}\n[assistant] walk\nverdict:")
    got = {}
    judge.model.answer([f"[user] {QUESTION}\n[assistant] walk\nverdict:"], got.__setitem__, batch_size=1)
    assert got == {0: expected}
    monkeypatch.setattr(judge.model, "answer", answer)
    judged = {}
    judge.judge_many(
        [Exchange(QUESTION, text, "harmful") for text in ("walk", "", "b", "c")], judged.__setitem__
    )
    assert prompts[0] == f"[user] {QUESTION}\n[assistant] walk\nverdict:"
    assert judged == {
        0: Judgement(None, True, "answer"),
        1: Judgement(None, False, "empty"),
        2: Judgement(None, False, "answer"),
        3: Judgement(None, None, "unreadable"),
    }
