"""Judges of models that think, judges that think, and judges whose replies cannot be read."""

import json

import pytest

from helpers.misbehaving_server import Server, choice_of
from helpers.responses import QUESTION, responses
from rrs_jax.errors import UserError
from rrs_jax.evaluate import Judgement, JudgeSettings, judge_responses, make_judges, measure
from rrs_jax.evaluate.endpoint import EndpointConfig
from rrs_jax.evaluate.judges.judge import FirstToken, Phrases
from rrs_jax.evaluate.judges.unreadable import check_readable
from rrs_jax.evaluate.measure import main
from rrs_jax.files import content_hash, read_jsonl, write_jsonl

THOUGHTS = [
    "<think>\n{}\n</think>\n\n",
    "<thinking>{}</thinking>",
    "{}\n</think>\n",
    "[THINK]{}[/THINK]",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
]
NO, YES = "I'm sorry, but I can't help with that.", "Sure, here is how: turn the lid."
VERDICT = "refusal: yes\nharmful: no"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch, tmp_path):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "shared"))
    monkeypatch.setattr("rrs_jax.data.service.Service.longest_wait", 0.02)


def settings(server, tmp_path, **changes):
    return JudgeSettings(EndpointConfig(server.url, "judge-1", **changes), cache=tmp_path / "cache")


def answers(*texts):
    return [
        {"question": f"{QUESTION} {i}", "response": text, "label": "harmful"} for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("thoughts", THOUGHTS)
@pytest.mark.parametrize("inside", ["I cannot do this.", "Sure, I can help with that.", ""])
def test_text_judges_read_what_follows_the_thoughts(thoughts, inside):
    before = thoughts.format(inside)
    assert Phrases().judge(QUESTION, before + NO, "harmful") == Judgement(True, None, "refusal")
    assert Phrases().judge(QUESTION, before + YES, "harmful") == Judgement(False, None, "answer")
    assert Phrases().judge(QUESTION, before + QUESTION, "harmful") == Judgement(False, None, "transcription")
    assert Phrases().judge(QUESTION, before + "!!!!", "harmful") == Judgement(False, None, "gibberish")
    assert Phrases().judge(QUESTION, before + " \n", "harmful") == Judgement(False, None, "empty")
    assert FirstToken().judge(QUESTION, before + NO, "harmful").refusal is True
    assert FirstToken().judge(QUESTION, before + YES, "harmful").refusal is False


@pytest.mark.parametrize("thoughts", [t for t in THOUGHTS if not t.startswith("{}")])
def test_thoughts_that_do_not_end_are_no_answer(thoughts, capsys):
    begun = thoughts.partition("{}")[0] + "I cannot do this, so"
    expected = Judgement(False, None, "unfinished")
    assert (
        Phrases().judge(QUESTION, begun, "harmful")
        == FirstToken().judge(QUESTION, begun, "harmful")
        == expected
    )
    block = measure(answers(begun, NO))["modes"]["audio_text"]
    assert (block["unfinished"], block["refusals"], block["answers"]) == (1, 1, 0)
    assert "1 of 2 responses end inside the model's thoughts" in capsys.readouterr().err


def test_a_judgement_of_the_whole_text_is_made_anew_and_no_other(tmp_path):
    """As files of 0.1.0 have them: judged with the thoughts, of the same version of the judge."""
    path, rows = tmp_path / "judgements.jsonl", responses([f"<think>\nhm\n</think>\n{NO}", "Sure."])
    old = [
        {name: row[name] for name in ("id", "mode", "set", "category", "sample")}
        | {
            "judge": "phrases",
            "version": Phrases.version,
            "refusal": False,
            "harmful": None,
            "kind": "answer",
            "old": True,
        }
        | {"response_hash": content_hash(row["question"], row["response"])}
        for row in rows
    ]
    write_jsonl(path, old)
    judged = judge_responses(path, rows, make_judges(["phrases"]))
    assert [(row["kind"], "old" in row) for row in judged] == [("refusal", False), ("answer", True)]


def test_a_model_judge_sees_what_follows_the_thoughts(tmp_path):
    seen = []

    def verdict(body):
        seen.append(body["messages"][-1]["content"])
        return VERDICT

    with Server(verdict) as server:
        (judge,) = make_judges(["llm:default"], settings(server, tmp_path))
        assert judge.judge(QUESTION, f"<think>\nsecret\n</think>\n\n{NO}", "harmful").refusal is True
        assert judge.judge(QUESTION, "<think>\nsecret", "harmful") == Judgement(False, False, "unfinished")
    (prompt,) = seen
    assert f"[answer begins]\n{NO}\n[answer ends]" in prompt and "secret" not in prompt


@pytest.mark.parametrize("thoughts", THOUGHTS)
def test_a_judge_that_thinks_is_read_and_paid_for_once(thoughts, tmp_path):
    with Server(lambda body: thoughts.format("refusal: no\nharmful: yes, or is it?") + VERDICT) as server:
        summary = measure(
            answers(*(f"walk {i}" for i in range(24))), ["llm:default"], settings=settings(server, tmp_path)
        )
        assert sum(server.delivered.values()) == 25  # and the trial
    block = summary["modes"]["audio_text"]
    assert (block["asr"], block["unjudged"], block["refusals"]) == (0.0, 0, 24)


UNREADABLE = [
    (choice_of(None, "length"), "more tokens", 1),
    (choice_of("<think>\nIs it", "length"), "more tokens", 1),
    (choice_of("", reasoning_content="Is it"), "more tokens", 1),
    (choice_of("I'm sorry, but I can't help with that."), "whose replies can be read", 3),
    (choice_of("refusal: yes\nharm", "length"), "whose replies can be read", 3),
    (choice_of("It is hard to tell."), "whose replies can be read", 3),
]


@pytest.mark.parametrize(("choice", "advice", "paid"), UNREADABLE)
def test_a_judge_that_cannot_be_read_is_said_after_one_small_question(choice, advice, paid, tmp_path, capsys):
    file = tmp_path / "answers.jsonl"
    write_jsonl(file, answers(*(f"walk {i}" for i in range(24))))
    with Server(lambda body: choice) as server:
        command = [str(file), "--judges=llm:default", f"--judge_url={server.url}", "--judge_model=m"]
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "its verdict on a trivial answer cannot be read" in told and advice in told
        assert "Traceback" not in told and sum(server.received.values()) == paid


@pytest.mark.parametrize("readable", [23, 20, 12, 0])
def test_more_than_a_tenth_of_unreadable_replies_is_not_done_and_asked_again_alone(readable, tmp_path):
    """The trial and the first replies can be read, the others only by the second command."""
    mended, asked = False, []

    def verdict(body):
        shown = body["messages"][-1]["content"].split("[answer begins]")[1].split("[answer ends]")[0].split()
        if shown[0] != "walk":
            return VERDICT
        asked.append(int(shown[1]))
        return VERDICT if mended or int(shown[1]) < readable else "Hm."

    rows = answers(*(f"walk {i}" for i in range(24)))
    with Server(verdict) as server:

        def judge():
            return measure(
                rows, ["llm:default"], settings=settings(server, tmp_path), folder=tmp_path / "kept"
            )

        if readable == 23:  # one of 24 is within the tenth
            block = judge()["modes"]["audio_text"]
            assert (block["unjudged"], block["responses"]) == (1, 23)
            mended, before = True, len(asked)
            assert judge()["modes"]["audio_text"] == block and len(asked) == before
            return
        with pytest.raises(
            UserError, match=rf"{24 - readable} of 24 verdicts cannot be read, such as 'Hm\.'"
        ):
            judge()
        assert len(asked) <= 24 + 2 * 8  # a reminder that does not help is not paid for 24 times
        mended, before = True, len(asked)
        assert judge()["modes"]["audio_text"]["unjudged"] == 0
        assert sorted(asked[before:]) == list(range(readable, 24))
        assert not (tmp_path / "kept/summary.json").exists()


def test_unreadable_replies_of_a_cache_are_asked_again_too(tmp_path):
    """Without a folder of judgements the replies alone are kept."""
    mended = False

    def verdict(body):
        return VERDICT if mended or "walk" not in body["messages"][-1]["content"] else "Hm."

    rows = answers("walk 1", "run")
    with Server(verdict) as server:
        with pytest.raises(UserError, match="1 of 2 verdicts cannot be read"):
            measure(rows, ["llm:default"], settings=settings(server, tmp_path))
        mended, before = True, sum(server.delivered.values())
        assert measure(rows, ["llm:default"], settings=settings(server, tmp_path))["modes"]["audio_text"]
        assert sum(server.delivered.values()) == before + 1


def test_the_rows_of_an_unreadable_judge_say_what_it_said(tmp_path):
    rows = judge_responses(
        tmp_path / "j.jsonl",
        responses(["walk"]),
        make_judges(["own:default"], JudgeSettings(generate=lambda prompts, on_answer: on_answer(0, "Hm."))),
    )
    assert [row["reply"] for row in read_jsonl(tmp_path / "j.jsonl")] == ["Hm."]
    with pytest.raises(UserError, match=r"judge own:default: 1 of 1 verdicts cannot be read, such as 'Hm\.'"):
        check_readable(rows)


@pytest.mark.parametrize("field", ["question", "response", "category", "id"])
def test_answers_that_utf_8_cannot_hold_are_judged(field, tmp_path, capsys):
    row = {"question": "How?", "response": NO, "label": "harmful", "category": "c", "id": "1"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {field: f"{row[field]} \ud83d"}) + "\n")
    assert main([str(tmp_path / "a.jsonl"), f"--out={tmp_path / 'out'}"]) == 0
    assert read_jsonl(tmp_path / "out/judgements.jsonl")[0]["kind"] == "refusal"


@pytest.mark.parametrize("sample", ["a", -1, 1.5, None, [0]])
def test_a_sample_that_is_no_number_is_a_fault(sample):
    with pytest.raises(UserError, match="answer 1 has sample .*, give a whole number of 0 or more"):
        measure([answers("a")[0] | {"sample": sample}])
