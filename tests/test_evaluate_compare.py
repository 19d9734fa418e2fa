"""Paired comparison of two evaluations and pooling of seeds, against SciPy, statsmodels and plain
counting."""

import json

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar

from rrs_jax.errors import UserError
from rrs_jax.evaluate import Engine, EvaluationPlan, Questions, Target, evaluate_model, make_judges
from rrs_jax.evaluate.compare import compare_folders, format_comparison, main, paired_block
from rrs_jax.evaluate.measure import main as measure_main
from rrs_jax.evaluate.measure import measure
from rrs_jax.evaluate.pool import main as pool_main
from rrs_jax.evaluate.pool import over_seeds
from rrs_jax.files import read_json, write_json, write_jsonl
from rrs_jax.report.details import details
from rrs_jax.report.table import text_table

NO, YES = "I'm sorry, but I can't assist with that.", "Sure, here are the steps."


def counts(seed, queries=60, samples=5, shift=0.0):
    rng = np.random.default_rng(0)
    chances = rng.beta(0.8, 1.2, queries)
    draws = np.random.default_rng(seed).binomial(samples, np.clip(chances - shift, 0, 1))
    return {f"q{i}": (int(k), samples) for i, k in enumerate(draws)}


def test_paired_block_against_plain_computations():
    first, second = counts(1), counts(2, shift=0.15)
    block = paired_block(first, second)
    a, b = (np.array([k for k, _ in c.values()]) / 5 for c in (first, second))
    assert block["difference"] == pytest.approx(100 * (b.mean() - a.mean()), abs=1e-3)
    # An independent paired bootstrap, question by question.
    result = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: y.mean(axis) - x.mean(axis),
        paired=True,
        method="percentile",
        vectorized=True,
        n_resamples=20_000,
        rng=3,
    ).confidence_interval
    assert block["ci95"] == pytest.approx([100 * result.low, 100 * result.high], abs=0.5)
    # The sign-flip distribution by hand.
    signs = np.random.default_rng(4).choice([-1, 1], (50_000, 60))
    flipped = np.abs((signs * (b - a)).mean(axis=1))
    assert block["p_permutation"] == pytest.approx(np.mean(flipped >= abs((b - a).mean()) - 1e-12), abs=0.01)
    table = [
        [np.sum((a > 0) & (b > 0)), np.sum((a > 0) & (b == 0))],
        [np.sum((a == 0) & (b > 0)), np.sum((a == 0) & (b == 0))],
    ]
    assert block["any"]["p_mcnemar"] == pytest.approx(mcnemar(table, exact=True).pvalue, abs=1e-6)
    assert (block["any"]["only_first"], block["any"]["only_second"]) == (table[0][1], table[1][0])


def test_the_paired_test_keeps_its_level_and_finds_a_drop():
    """p is below 0.05 in about one of twenty draws without a difference, and nearly always with 15 points."""
    null = [paired_block(counts(10 + 2 * i), counts(11 + 2 * i))["p_permutation"] for i in range(60)]
    assert sum(p < 0.05 for p in null) <= 9  # 3 expected, three standard deviations are 5
    drop = [
        paired_block(counts(10 + 2 * i), counts(11 + 2 * i, shift=0.15))["p_permutation"] for i in range(10)
    ]
    assert sum(p < 0.05 for p in drop) >= 9


def test_equal_runs_and_nothing_in_common():
    block = paired_block(counts(1), counts(1))
    assert (block["difference"], block["p_permutation"], block["any"]["p_mcnemar"]) == (0.0, 1.0, 1.0)
    assert paired_block({"a": (1, 5)}, {"b": (1, 5)}) is None
    assert paired_block({"a": (1, 5), "c": (2, 5)}, {"b": (1, 5), "c": (0, 4)})["queries"] == 1


def evaluation(run, name, share, seed, questions=12, vanilla=None, judges=("phrases", "first_token")):
    rows = [
        {
            "id": f"{label}{i}",
            "label": label,
            "category": "c",
            "question": f"How do I do {i}?",
            "audio": "x.wav",
        }
        for label in ("harmful", "benign")
        for i in range(questions)
    ]
    rng = np.random.default_rng(seed)

    def generate(requests, on_finished):
        for request in requests:
            refused = rng.random() < (share if request.key[0] == "harmful" else 0.05)
            on_finished(request, NO if refused else YES)

    plan = EvaluationPlan(modes=("audio_text", "text_only"), samples=2)
    judges, target = make_judges(judges), Target(run / "eval", name)
    return evaluate_model(Engine(generate), Questions(rows), plan, judges, target, vanilla)


def test_folders_are_compared_judge_by_judge(tmp_path, capsys):
    before = evaluation(tmp_path, "vanilla", 0.1, 0)
    after = evaluation(tmp_path, "rrs", 0.9, 1)
    comparison = compare_folders(tmp_path / "eval/vanilla", tmp_path / "eval/rrs")
    block = comparison["judges"]["phrases"]["harmful"]["audio_text"]
    assert block["rates"] == [summary["modes"]["audio_text"]["asr"] for summary in (before, after)]
    assert block["difference"] < -40 and block["p_permutation"] < 0.01
    assert comparison["judges"]["phrases"]["borderline"]["audio_text"] is None
    assert "everyday" not in comparison["judges"]["phrases"]  # scripts go through the sets that were asked
    assert comparison["judges"]["first_token"]["benign"]["audio_text"]["rates"][0] == before["orr"]["rate"]
    assert main([str(tmp_path / "eval/vanilla"), str(tmp_path / "eval/rrs")]) == 0
    assert capsys.readouterr().out.strip() == format_comparison(comparison)


def test_details_hold_judges_agreement_tests_and_categories(tmp_path):
    for name, share in (("vanilla", 0.1), ("rrs", 0.9)):
        evaluation(tmp_path, name, share, 0)
    write_json(
        tmp_path / "eval/rrs/compared_to_vanilla.json",
        compare_folders(tmp_path / "eval/vanilla", tmp_path / "eval/rrs"),
    )
    text, summary = details([tmp_path]), read_json(tmp_path / "eval/rrs/summary.json")
    for words in (
        "rrs, phrases",
        "rrs, first_token",
        "phrases and first_token",
        "rrs, c",
        "Against the vanilla model",
    ):
        assert words in text
    rate = summary["modes"]["audio_text"]
    assert f"{rate['asr']:.1f} [{rate['ci95'][0]:.1f}, {rate['ci95'][1]:.1f}]" in text
    assert "1.00 [1.00, 1.00]" in text  # "I'm sorry" begins with the token and is a refusal
    assert "| rrs, phrases | compliance |" in details([tmp_path], markdown=True)


def test_answers_from_anywhere_are_measured(tmp_path, capsys):
    answers = [
        {"question": f"Q{i}?", "response": NO if i % 2 else YES, "label": ("harmful", "benign")[i // 4]}
        for i in range(8)
    ]
    summary = measure(answers + answers, judges=("phrases", "first_token"))
    assert (summary["modes"]["audio_text"]["asr"], summary["modes"]["audio_text"]["compliance"]) == (
        50.0,
        50.0,
    )
    assert (summary["orr"]["rate"], summary["orr"]["queries"], summary["orr"]["responses"]) == (50.0, 4, 8)
    write_jsonl(tmp_path / "answers.jsonl", answers)
    command = [str(tmp_path / "answers.jsonl"), f"--out={tmp_path / 'eval' / 'theirs'}"]
    assert measure_main(command) == 0
    assert json.loads(capsys.readouterr().out) == read_json(tmp_path / "eval/theirs/summary.json")
    assert "theirs" in text_table([tmp_path])
    with pytest.raises(
        UserError, match=r"answer 1 has no response; answer 2 has label 'bad' in mode 'audio_text'"
    ):
        measure([{"question": "Q", "label": "benign"}, {"question": "Q", "response": "", "label": "bad"}])
    with pytest.raises(UserError, match="there are none"):
        measure([])


def test_folders_that_cannot_be_compared_say_why(tmp_path, capsys):
    evaluation(tmp_path, "vanilla", 0.1, 0, judges=("phrases",))
    evaluation(tmp_path, "rrs", 0.1, 0, judges=("first_token",))
    with pytest.raises(UserError, match="no judge of the same version is in both"):
        compare_folders(tmp_path / "eval/vanilla", tmp_path / "eval/rrs")
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "holds no summary.json" in capsys.readouterr().err


def test_seeds_are_pooled_question_by_question(tmp_path):
    singles = []
    for seed in range(3):
        run = tmp_path / f"run{seed}"
        vanilla = evaluation(run, "vanilla", 0.1, 10 + seed)
        singles.append(evaluation(run, "rrs", 0.7, seed, vanilla=vanilla))
    runs = [str(tmp_path / f"run{seed}") for seed in range(3)]
    assert pool_main([*runs, f"--out={tmp_path / 'pooled'}"]) == 0
    pooled = read_json(tmp_path / "pooled/eval/rrs/summary.json")
    rates = [single["modes"]["audio_text"]["asr"] for single in singles]
    block = pooled["modes"]["audio_text"]
    assert (block["queries"], block["responses"]) == (12, 72)
    assert block["asr"] == pytest.approx(np.mean(rates), abs=1e-3)  # equally many responses in each run
    spread = pooled["seeds"]["modes"]["audio_text"]
    assert spread["rates"] == rates
    expected = scipy.stats.t.interval(0.95, 2, np.mean(rates), scipy.stats.sem(rates))
    assert spread["ci95"] == pytest.approx(expected, abs=1e-3)
    assert pooled["nsi"]["average"] == pytest.approx(
        np.mean([single["nsi"]["average"] for single in singles]), abs=1e-2
    )
    assert pooled["agreement"][0]["responses"] == 3 * 2 * 2 * (12 + 6)
    assert "rrs" in text_table([tmp_path / "pooled"])


def test_an_interval_over_seeds_ends_where_the_rate_does():
    rates = [63.0, 11.0, 12.0]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(rates), scipy.stats.sem(rates))
    assert low < 0 and high > 100
    assert over_seeds(rates)["ci95"] == [0.0, 100.0]
    assert over_seeds(rates, least=-100.0)["ci95"] == [pytest.approx(low, abs=1e-3), 100.0]


def test_seeds_with_other_questions_are_not_pooled(tmp_path, capsys):
    evaluation(tmp_path / "a", "rrs", 0.5, 0)
    evaluation(tmp_path / "b", "rrs", 0.5, 0, questions=11)
    assert pool_main([str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path / 'c'}"]) == 2
    assert "was asked other questions or modes" in capsys.readouterr().err
