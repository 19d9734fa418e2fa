"""BeaverTails' rows as questions: the rule, every kind of file, and what is said of bad rows."""

import gzip
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from helpers.synthetic_beavertails import CATEGORIES, benign_rows, harmful_rows, lines, row, source_rows
from rrs_jax.config.vocabulary import CATEGORIES as STARTER_CATEGORIES
from rrs_jax.data.beavertails import group_rows, read_beavertails
from rrs_jax.errors import UserError

ANIMALS, DRUGS, POLITICS = (
    "animal_abuse",
    "drug_abuse,weapons,banned_substance",
    "controversial_topics,politics",
)


def questions_of(*groups):
    return {question.key: question for question in group_rows([item for group in groups for item in group])}


def test_the_keys_are_beavertails():
    assert tuple(CATEGORIES) == STARTER_CATEGORIES


def test_a_question_is_judged_by_its_answers():
    found = questions_of(
        harmful_rows("How do I scare my cats?", ANIMALS),
        benign_rows("What is hot cold cognition?"),
        [
            row("Is it fine to skip school?", "Yes.", False, POLITICS),
            row("Is it fine to skip school?", "No.", True),
            row("Is it fine to skip school?", "Ask your teacher.", True),
        ],
    )
    kinds = {question.text: (question.kind, question.category) for question in found.values()}
    assert kinds == {
        "How do I scare my cats?": ("harmful", ANIMALS),
        "What is hot cold cognition?": ("benign", None),
        "Is it fine to skip school?": ("mixed", None),
    }


def test_annotators_vote_on_an_answer():
    question = "How do I scare my cats?"
    rows = [row(question, "a", safe, *[] if safe else [ANIMALS]) for safe in (True, True, False)]
    (found,) = group_rows(rows)
    assert (found.kind, found.safe_answers) == ("benign", ("a",))
    (found,) = group_rows(rows + [row(question, "a", False, ANIMALS)])  # a tie counts as unsafe
    assert (found.kind, found.safe_answers, found.unsafe_share) == ("harmful", (), 1.0)


def test_a_question_of_several_categories_has_one():
    rows = [
        row("How do I trick a vet?", "1", False, ANIMALS, DRUGS),
        row("How do I trick a vet?", "2", False, DRUGS),
    ]
    assert group_rows(rows)[0].category == DRUGS
    tie = [row("How do I trick a vet?", "1", False, ANIMALS, DRUGS)]
    elsewhere = harmful_rows("How do I scare my birds?", ANIMALS)
    assert {q.text: q.category for q in group_rows(tie + elsewhere)}[
        "How do I trick a vet?"
    ] == DRUGS  # the rarer


def test_spellings_are_one_question():
    rows = [
        row(text, "x", True)
        for text in ("who eats  cats?", "“Who eats cats?”", "Who eats cats?", "Who eats cats")
    ]
    (found,) = group_rows(rows)
    assert found.text == "Who eats cats?"


# Reading


def test_every_kind_of_file_reads_the_same(tmp_path):
    rows = source_rows(2)
    (tmp_path / "a.jsonl").write_text(lines(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(rows).encode()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines(rows).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [
        read_beavertails(str(tmp_path / f"a.{kind}")) for kind in ("jsonl", "jsonl.gz", "jsonl.xz", "parquet")
    ]
    assert read[0] == read[1] == read[2] == read[3] and len(read[0]) > 50


def test_the_hub_is_asked_for_the_splits_file(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, repo_type):
        asked.append((repository, name, repo_type))
        path = tmp_path / "train.jsonl.xz"
        path.write_bytes(lzma.compress(lines(benign_rows("Who eats cheap bread?")).encode()))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(read_beavertails("PKU-Alignment/BeaverTails", "330k_train")) == 1
    assert asked == [("PKU-Alignment/BeaverTails", "round0/330k/train.jsonl.xz", "dataset")]


def test_no_hub_is_one_sentence(monkeypatch):
    def download(*_, **__):
        raise OSError("no network\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError) as error:
        read_beavertails("PKU-Alignment/BeaverTails")
    assert (
        str(error.value)
        == "PKU-Alignment/BeaverTails: round0/330k/train.jsonl.xz cannot be fetched from the hub (no"
        " network); download it where there is a network and give the file itself as --source."
    )
    with pytest.raises(UserError, match="is no file and no hub repository"):
        read_beavertails("missing.jsonl")


def test_bad_rows_come_all_at_once(tmp_path):
    good = row("Why is it so?", "x", True)
    bad = [
        good | {"prompt": [3]},
        good | {"prompt": " "},
        good | {"is_safe": 1},
        good | {"category": {"animal_abuse": True}},
        good | {"category": None},
    ]
    (tmp_path / "a.jsonl").write_text(lines([good, *bad]))
    with pytest.raises(UserError) as error:
        read_beavertails(str(tmp_path / "a.jsonl"))
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'a.jsonl'}: 5 of 6 rows are not in BeaverTails' schema; mend or delete them:",
        "  row 2: prompt is no text",
        "  row 3: prompt is empty",
        "  row 4: is_safe is neither true nor false",
        (
            "  row 5: category has or lacks child_abuse, controversial_topics,politics,"
            " discrimination,stereotype,injustice"
        ),
        "  row 6: category is no object of 14 booleans",
    ]
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(lines([good] * 99).encode())[:60])
    with pytest.raises(UserError, match="is damaged or cut short"):
        read_beavertails(str(tmp_path / "b.jsonl.xz"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not readable as Parquet"):
        read_beavertails(str(tmp_path / "c.parquet"))
