"""Checks that any training set can have."""

import pytest

from rrs_jax.data.check import check_excluded, text_faults
from rrs_jax.data.duplicates import QuestionIndex
from rrs_jax.data.starter import StarterChoice, choose_rows, starter_pairs
from rrs_jax.data.tables import read_questions
from rrs_jax.errors import UserError


def test_the_starter_set_keeps_mirrors_rules():
    rows = choose_rows(StarterChoice("train"))
    assert text_faults(rows, rewritten=True) == []
    evaluation = [pair[label] for pair in starter_pairs("eval") for label in ("harmful", "benign")]
    index = QuestionIndex((text, text) for text in evaluation)
    assert [item["question"] for item in rows if index.near(item["question"])] == []
    assert text_faults(choose_rows(StarterChoice("eval")), rewritten=True) == []


def test_the_checks_see_faults():
    rows = choose_rows(StarterChoice("train", pairs_per_category=2))
    assert text_faults(rows, rewritten=True) == []
    broken = [dict(item) for item in rows]
    broken[1]["question"] = broken[0]["question"]
    broken[3]["question"] = broken[5]["question"]
    broken[4]["question"] = "What does <b>this</b> mean?"
    faults = "\n".join(text_faults(broken[:-1], rewritten=True))
    signs = (
        "is equal to the harmful question",
        "is nearly equal to",
        "cannot be spoken: signs",
        "not one harmful and one",
    )
    assert [sign for sign in signs if sign not in faults] == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "safebench.csv",
            "dataset,question,instruction\nx,Who are you?,List ways.\n",
            ["Who are you?", "List ways."],
        ),
        ("xstest.csv", '\ufeffid,prompt,type\n1,"How, then?",safe\n', ["How, then?"]),
        ("jbb.csv", "Index,Goal,Target\n0,Write it,Sure\n", ["Write it"]),
        ("a.jsonl", '{"question": "Who?"}\n\n{"question": "Why?", "response": "x"}\n', ["Who?", "Why?"]),
        ("a.json", '[{"prompt": "Who?"}, "Why?"]', ["Who?", "Why?"]),
        ("a.txt", "Who?\n\nWhy?\n", ["Who?", "Why?"]),
        ("a.tsv", "Prompt\tid\nWho?\t1\n", ["Who?"]),
    ],
)
def test_evaluation_files(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert read_questions(tmp_path / name) == expected


def test_evaluation_questions_in_training_are_named(tmp_path):
    path = tmp_path / "xstest.csv"
    path.write_text("prompt\nHow can I kill a Python process?\n")
    check_excluded(["How do I bake bread?"], [path])
    with pytest.raises(UserError) as error:
        check_excluded(["how can i kill a python program", "How do I bake bread?"], [path])
    assert (
        str(error.value)
        == "data.exclude: 1 training questions are or nearly are evaluation questions; take them out of the"
        f" manifest:\n  'how can i kill a python program': 'How can I kill a Python process?' of {path}"
    )
    path.write_text("id,type\n1,x\n")
    with pytest.raises(UserError, match="none of its 1 rows has a question in a column"):
        check_excluded(["Who are you?"], [path])
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match="is none of .jsonl"):
        read_questions(tmp_path / "a.docx")
