"""Rates by style and category, of everyday questions, and of what a training left out, counted by hand."""

import pytest

from helpers.report_runs import write_run
from rrs_jax.errors import UserError
from rrs_jax.evaluate import Engine, EvaluationPlan, Questions, Target, evaluate_model, make_judges, measure
from rrs_jax.evaluate.compare import compare_folders
from rrs_jax.evaluate.left_out import left_out_rates
from rrs_jax.evaluate.pool import pool
from rrs_jax.files import read_jsonl
from rrs_jax.report.page import make_page
from rrs_jax.report.table import text_table

NO, YES = "I'm sorry, but I can't assist with that.", "Sure, here are the steps."
STYLES, CATEGORIES, PAIRS = ("question", "keywords", "task"), ("theft", "privacy"), 2
# Harmful questions that are refused by ear beside the text; of the others, and by text alone, none is.
REFUSED = {
    ("question", "theft"): 2,
    ("question", "privacy"): 1,
    ("keywords", "theft"): 1,
    ("task", "theft"): 2,
}


def questions() -> list[dict]:
    rows = [
        {
            "id": f"{style}-{category}-{n}-{label}",
            "label": label,
            "category": category,
            "style": style,
            "question": f"{style} {category} {n} {label}?",
            "audio": "a.wav",
        }
        for style in STYLES
        for category in CATEGORIES
        for n in range(PAIRS)
        for label in ("harmful", "benign")
    ]
    for label, count in (("borderline", 2), ("everyday", 4)):
        rows += [
            {
                "id": f"{label}{n}",
                "label": label,
                "category": label,
                "question": f"{label} {n}?",
                "audio": "a",
            }
            for n in range(count)
        ]
    return rows


def answer(label: str, identity: str, mode: str) -> str:
    if label == "everyday":
        return NO if identity == "everyday0" else YES
    if label != "harmful" or mode != "audio_text":
        return NO if identity == "task-privacy-1-benign" else YES
    style, category, number, _ = identity.split("-")
    return NO if int(number) < REFUSED.get((style, category), 0) else YES


def evaluation(folder, name="rrs", rows=None, **plan):
    def generate(requests, on_finished):
        for request in requests:
            on_finished(request, answer(*request.key[:3]))

    return evaluate_model(
        Engine(generate),
        Questions(questions() if rows is None else rows),
        EvaluationPlan(**{"modes": ("audio_text", "text_only"), "samples": 1} | plan),
        make_judges(("phrases", "first_token")),
        Target(folder / "eval", name),
    )


def counts(blocks: dict) -> dict:
    return {mode: (block["refusals"], block["responses"]) for mode, block in blocks.items() if block}


def test_the_summary_has_the_share_refused_by_style_and_category(tmp_path):
    summary = evaluation(tmp_path)
    by_style, by_category = summary["refused_by"]["style"], summary["refused_by"]["category"]
    assert list(summary["refused_by"]) == ["style", "category"] and set(by_style) == {"harmful", "benign"}
    assert {style: counts(blocks) for style, blocks in by_style["harmful"].items()} == {
        "question": {"audio_text": (3, 4), "text_only": (0, 4)},
        "keywords": {"audio_text": (1, 4), "text_only": (0, 4)},
        "task": {"audio_text": (2, 4), "text_only": (0, 4)},
    }
    assert counts(by_style["benign"]["task"]) == {"audio_text": (1, 4)}
    assert by_style["harmful"]["question"]["audio_text"]["rate"] == 75.0
    assert by_style["harmful"]["question"]["audio_only"] is None
    assert counts(by_category["harmful"]["theft"]) == {"audio_text": (5, 6), "text_only": (0, 6)}
    assert counts(by_category["everyday"]["everyday"]) == {"audio_text": (1, 4)}
    for name in ("responses", "judgements"):
        rows = read_jsonl(tmp_path / "eval" / "rrs" / f"{name}.jsonl")
        assert {row.get("style") for row in rows if row["set"] == "harmful"} == set(STYLES)
        assert not any("style" in row for row in rows if row["set"] in ("borderline", "everyday"))
    assert evaluation(tmp_path) == summary  # once more, from what is on disk
    assert (
        pool([tmp_path / "eval" / "rrs"] * 2)["refused_by"]["style"]["harmful"]["task"]["audio_text"][
            "responses"
        ]
        == 8
    )


def test_without_styles_and_everyday_questions_nothing_is_said_of_them(tmp_path):
    rows = [
        {name: value for name, value in row.items() if name != "style"}
        for row in questions()
        if row["label"] != "everyday"
    ]
    summary = evaluation(tmp_path, rows=rows, over_refusal_modes=("audio_text", "text_only"))
    assert "refused_by" not in summary and "everyday" not in str(summary)
    with pytest.raises(UserError, match="no question has the style task"):
        left_out_rates(tmp_path / "eval" / "rrs", styles=("task",))


def test_everyday_questions_have_a_rate_of_their_own(tmp_path):
    summary = evaluation(tmp_path, over_refusal_modes=("audio_text", "text_only"))
    assert (summary["everyday_orr"]["rate"], summary["everyday_orr"]["queries"]) == (25.0, 4)
    assert summary["orr_by_mode"]["text_only"]["everyday_orr"]["rate"] == 25.0
    assert summary["orr"]["queries"] == 12 and summary["borderline_orr"]["rate"] == 0.0
    assert summary["other_judges"]["first_token"]["everyday_orr"]["rate"] == 25.0
    table = text_table([tmp_path])
    assert "Questions: 12 harmful, 12 benign, 2 borderline, 4 everyday" in table
    assert "Refused of everyday questions, rrs: 25.0 [" in table
    compared = compare_folders(tmp_path / "eval" / "rrs", tmp_path / "eval" / "rrs")
    assert compared["judges"]["phrases"]["everyday"]["audio_text"]["rates"] == [25.0, 25.0]
    seeds = pool([tmp_path / "eval" / "rrs"] * 2)["seeds"]
    assert seeds["everyday_orr"]["rates"] == [25.0, 25.0]


def test_left_out_styles_and_categories_stand_apart(tmp_path):
    evaluation(tmp_path)
    found = left_out_rates(tmp_path / "eval" / "rrs", styles=("keywords", "task"), categories=("privacy",))
    harmful = {
        part: counts(found[part]["harmful"])["audio_text"] for part in ("styles", "categories", "kept")
    }
    assert harmful == {"styles": (3, 8), "categories": (1, 6), "kept": (2, 2)}
    assert counts(found["styles"]["benign"]) == {"audio_text": (1, 8)}
    assert set(found["by_style"]) == {"keywords", "task"}
    assert counts(found["by_style"]["keywords"]["harmful"])["audio_text"] == (1, 4)
    assert counts(found["by_category"]["privacy"]["harmful"])["audio_text"] == (1, 6)
    assert found["kept"]["harmful"]["text_only"]["rate"] == 0.0 and "everyday" not in found["kept"]
    with pytest.raises(UserError, match="no question has the category murder"):
        left_out_rates(tmp_path / "eval" / "rrs", categories=("murder", "theft"))


def test_answers_from_anywhere_may_have_a_style():
    answers = [
        {"question": f"Q{n}?", "response": NO if n else YES, "label": "harmful", "style": "task"}
        for n in range(4)
    ]
    summary = measure([*answers, {"question": "Why?", "response": NO, "label": "everyday"}])
    assert counts(summary["refused_by"]["style"]["harmful"]["task"]) == {"audio_text": (3, 4)}
    assert summary["everyday_orr"]["rate"] == 100.0


def test_the_page_has_the_rates_by_style_worst_first(tmp_path):
    fields = {"data.left_out_styles": ("keywords",), "data.train_set": "styles"}
    run = write_run(tmp_path / "rrs", **fields)
    assert 'id="styles"' not in make_page(tmp_path / "without", [run], "rrs").read_text()
    for name in ("vanilla", "rrs"):
        for file in (run / "eval" / name).glob("*"):
            file.unlink()
        evaluation(run, name, modes=("audio_text",))
    page = make_page(tmp_path / "with", [run], "rrs").read_text()
    section = page[page.index('<section id="styles">') :].partition("</section>")[0]
    table = section.partition("</table>")[0]
    assert "harmful, audio-text" in table and "rewrites, audio-text" in table
    assert "text-only" not in table and "audio-only" not in table
    assert "keywords (not trained on)" in table and "25.0 (1 of 4)" in table
    places = [table.index(f">{style}") for style in ("keywords", "task", "question")]
    assert places == sorted(places)
    assert section.count("<table>") == 2  # the vanilla model's is folded away
    assert "ORR everyday" in page and "4 everyday questions" in page
