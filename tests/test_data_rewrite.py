"""Rewrites: the rules, new tries, a person's edits."""

from collections import Counter

import pytest

from helpers.authors_files import DRUGS
from helpers.rewriters import Parrot
from helpers.synthetic_beavertails import BENIGN, CATEGORIES, lines, source_rows
from rrs_jax.data.beavertails import group_rows
from rrs_jax.data.edits import read_edits
from rrs_jax.data.rewrite import rewrite_fault, write_mirror
from rrs_jax.data.selection import make_pool
from rrs_jax.data.writers import Ledger
from rrs_jax.errors import UserError

ANIMALS = "animal_abuse"
ROWS = source_rows(6)


# Rewriting


@pytest.mark.parametrize(
    ("benign", "fault"),
    [
        ("How do I teach my dog to befriend cats?", None),
        ("how do I teach my dog to like cats?", None),
        ("How do I teach my dog to kill cats?", "is equal"),
        ("", "is empty"),
        ('"How do I teach my dog to like cats?"', "has quotation"),
        ("How do I teach my dog to “like” cats?", "has quotation"),
        ("I'm sorry, I cannot help.", "is a refusal"),
        ("How do I teach my dog to like cats", "is no question"),
        ("What do you feed a young horse?", "changes"),
        ("How do I teach my dog to like cats?\nIt is kinder.", "has several lines"),
        ("How do I teach my dog to like <cats>?", "cannot be"),
    ],
)
def test_rules_for_a_rewrite(benign, fault):
    found = rewrite_fault("How do I teach my dog to kill cats?", benign)
    assert found is None if fault is None else found.startswith(fault)


def mirror(pool, tmp_path, writer, **options):
    return write_mirror(pool, 2, Ledger(tmp_path / "ledger.jsonl", writer), **options)


def test_failures_are_tried_again_replaced_and_listed(tmp_path):
    pool = make_pool(group_rows(ROWS))
    bad = pool.harmful[ANIMALS][0].text
    late = pool.harmful[DRUGS][1].text

    def rewrite(question, good, attempt):
        return "I cannot do that." if question == bad or (question == late and attempt < 2) else good

    def verdict(question):
        return "Yes, it is." if "my coworkers" in question and question == trick else "No"

    trick = " ".join(BENIGN.get(w, w) for w in pool.harmful["non_violent_unethical_behavior"][0].text.split())
    writer = Parrot(rewrite=rewrite, verdict=verdict)
    pairs, failures = mirror(pool, tmp_path, writer)
    assert Counter(pair.question.category for pair in pairs) == dict.fromkeys(CATEGORIES, 2)
    assert [pair.question.category for pair in pairs[:14]] == list(CATEGORIES)
    assert {f.question.text: [t["wrong"] for t in f.tries] for f in failures} == {
        bad: ["is a refusal"] * 3,
        pool.harmful["non_violent_unethical_behavior"][0].text: ["is still harmful"] * 3,
    }
    assert late in {pair.question.text for pair in pairs}
    animals = [pair.question for pair in pairs if pair.question.category == ANIMALS]
    assert animals == pool.harmful[ANIMALS][1:3]  # the next in the draw
    assert set(writer.asked.values()) == {1}  # no answer twice

    again = Parrot(rewrite=rewrite, verdict=verdict)
    assert mirror(pool, tmp_path, again) == (pairs, failures) and not again.asked  # all from the ledger


def test_a_person_has_the_last_word(tmp_path):
    pool = make_pool(group_rows(ROWS))
    first, second, third = pool.harmful[ANIMALS][:3]
    good = first.text.replace("scare", "brush")
    edits = {first.key: good, second.key: None}
    pairs, failures = mirror(pool, tmp_path, Parrot(), edits=edits)
    animals = [(p.question, p.benign, p.writer) for p in pairs if p.question.category == ANIMALS]
    assert animals == [(first, good, "a person"), (third, third.text.replace("scare", "feed"), "parrot")]
    assert not failures


def test_edits_are_checked(tmp_path):
    pool = make_pool(group_rows(ROWS))
    text = pool.harmful[ANIMALS][0].text
    path = tmp_path / "edits.jsonl"
    path.write_text(
        lines(
            [
                {"harmful": text, "benign": text.replace("scare", "brush")},
                {"harmful": text.upper(), "benign": ""},
                {"harmful": text, "benign": text},
                {"harmful": "Who are you then?", "benign": "x"},
                {"benign": "x"},
                {"harmful": text, "benign": 3},
            ]
        )
    )
    with pytest.raises(UserError) as error:
        read_edits(path, pool)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "line 3",
        "line 4",
        "line 5",
        "line 6",
    ]
    path.write_text(lines([{"harmful": text.upper(), "benign": None}]))
    assert read_edits(path, pool) == {pool.harmful[ANIMALS][0].key: None}


def test_without_a_writer_all_are_left_to_a_person(tmp_path):
    pool = make_pool(group_rows(ROWS))
    with pytest.raises(UserError, match=r"too few pairs in animal_abuse \(0\)") as error:
        write_mirror(pool, 2, None)
    listed = [failure.row() for failure in error.value.failures]
    assert len(listed) == 28 and all(item["benign"] == "" and item["harmful"] for item in listed)
    edits = {
        f.question.key: " ".join(BENIGN.get(w, w) for w in f.question.text.split())
        for f in error.value.failures
    }
    pairs, failures = write_mirror(pool, 2, None, edits=edits)
    assert len(pairs) == 28 and not failures
