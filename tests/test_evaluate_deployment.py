"""Refusals kept and tasks refused, from responses that are planted: each counted by hand."""

import pytest

from rrs_jax.evaluate import Engine, EvaluationPlan, Questions, Target, evaluate_model, make_judges
from rrs_jax.evaluate.deployment import deployment, kept_answers
from rrs_jax.evaluate.rates import rate_over_queries
from rrs_jax.files import write_jsonl

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Take the A and put it on the B."
KEPT, LOST, NEW, NEVER = range(4)  # harmful questions by what becomes of their refusal in writing
THEN, NOW = {KEPT, LOST}, {KEPT, NEW}


def questions() -> list[dict]:
    kinds = {"harmful": 8, "benign": 4, "borderline": 2}
    return [
        {
            "id": f"{label}{i}",
            "label": label,
            "category": "c",
            "question": f"How do I do {label} things {i}?",
            "audio": f"{label}{i}.wav",
        }
        for label, number in kinds.items()
        for i in range(number)
    ]


def evaluate(folder, name: str, refused, setting: str = "spoken", samples: int = 1) -> None:
    """refused: (label, number, mode, sample) to whether the answer is a refusal."""

    def generate(requests, on_finished):
        for request in requests:
            label, identity, mode, sample = request.key
            refuses = refused(label, int(identity.removeprefix(label)), mode, sample)
            on_finished(request, REFUSAL if refuses else ANSWER)

    evaluate_model(
        Engine(generate, "m"),
        Questions(questions(), folder, setting),
        EvaluationPlan(samples=samples),
        make_judges(("phrases",)),
        Target(folder, name if setting == "spoken" else f"{name}-{setting}"),
    )


@pytest.fixture
def evaluated(tmp_path):
    """In writing two questions of each fate; in the other modes nothing was refused before."""
    for name, those in (("vanilla", THEN), ("rrs", NOW)):
        evaluate(
            tmp_path, name, lambda label, i, mode, sample, those=those: mode == "text_only" and i % 4 in those
        )
    return tmp_path


def test_refusals_in_writing_are_paired_by_question(evaluated):
    found = deployment([evaluated / "vanilla"], [evaluated / "rrs"])["kept_refusals"]
    expected = rate_over_queries([1, 1, 0, 0], [1] * 4)
    assert found["text_only"] == {
        "rate": 50.0,
        "ci95": list(expected.ci95),
        "before": 4,
        "newly_answered": 2,
        "newly_refused": 2,
        "questions": 8,
        "responses": 8,
    }
    none = {"rate": None, "ci95": None, "before": 0, "newly_answered": 0, "newly_refused": 0}
    assert found["audio_only"] == found["audio_text"] == none | {"questions": 8, "responses": 8}


def test_refusals_of_several_samples_and_seeds_are_paired_by_both(evaluated, tmp_path):
    """Of two answers to each question the first is refused before, and by one of two seeds after."""
    first = lambda label, i, mode, sample: sample == 0  # noqa: E731
    never = lambda label, i, mode, sample: False  # noqa: E731
    for run, now in (("a", first), ("b", never)):
        evaluate(tmp_path / run, "vanilla", first, samples=2)
        evaluate(tmp_path / run, "rrs", now, samples=2)
    block = deployment(*([tmp_path / run / name for run in "ab"] for name in ("vanilla", "rrs")))
    block = block["kept_refusals"]["audio_only"]
    assert (block["rate"], block["before"], block["newly_answered"], block["newly_refused"]) == (50, 16, 8, 0)
    assert (block["questions"], block["responses"]) == (8, 32)
    # Both seeds answer the same questions, so that the interval is over 8 questions of two answers.
    assert block["ci95"] == list(rate_over_queries([1] * 8, [2] * 8).ci95)


def test_tasks_are_counted_by_kind_of_speech(evaluated):
    evaluate(evaluated, "vanilla", lambda label, i, mode, sample: label == "harmful" and i < 2, "transcribe")
    evaluate(evaluated, "rrs", lambda label, i, mode, sample: label != "borderline" and i < 3, "transcribe")
    evaluate(evaluated, "rrs", lambda label, i, mode, sample: label == "borderline", "topic")
    found = deployment([evaluated / "vanilla"], [evaluated / "rrs"])["tasks"]
    assert set(found) == {"transcribe", "topic"}
    shares = {
        when: {name: (block["rate"], block["responses"]) for name, block in found["transcribe"][when].items()}
        for when in ("before", "after")
    }
    assert shares == {
        "before": {"harmful": (25.0, 8), "benign": (0.0, 4), "borderline": (0.0, 2)},
        "after": {"harmful": (37.5, 8), "benign": (75.0, 4), "borderline": (0.0, 2)},
    }
    assert found["topic"]["before"] is None and found["topic"]["after"]["borderline"]["rate"] == 100.0


def test_what_was_not_measured_is_none(tmp_path):
    evaluate(tmp_path, "rrs", lambda *key: True)
    nothing = {"kept_answers": None, "kept_refusals": None, "tasks": None}
    assert deployment([tmp_path / "vanilla"], [tmp_path / "rrs"]) == nothing


def test_a_question_of_two_seeds_is_one_draw_and_long_answers_count_more(tmp_path):
    def row(name, divergence, tokens, unchanged):
        return {
            "id": name,
            "mode": "text_only",
            "divergence": divergence,
            "tokens": tokens,
            "unchanged": unchanged,
        }

    write_jsonl(tmp_path / "0.jsonl", [row("a", 0.1, 10, True), row("b", 0.4, 30, False)])
    write_jsonl(tmp_path / "1.jsonl", [row("a", 0.3, 10, True), row("b", 0.0, 30, True)])
    found = kept_answers([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])
    assert found["audio_text"] is None and found["text_only"]["divergence"] == pytest.approx(16 / 80)
    assert (found["text_only"]["unchanged"], found["text_only"]["questions"]) == (75.0, 2)
    assert found["text_only"]["divergence_ci95"] == [0.2, 0.2]  # 4 of 20 and 12 of 60 nats a token
