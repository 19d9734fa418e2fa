"""The starter questions keep the rules of the paper's Mirror set; a choice of them is balanced."""

import difflib
import itertools
import re
from collections import Counter

import pytest

from rrs_jax.data.questions import changed_words
from rrs_jax.data.starter import StarterChoice, choose_rows, starter_pairs, starter_singles
from rrs_jax.errors import UserError

BEAVERTAILS = {
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
}


def words(question):
    return re.findall(r"[a-z']+", question.lower())


def questions(split):
    return [pair[label] for pair in starter_pairs(split) for label in ("harmful", "benign")]


def singles(name):
    return [row["question"] for row in starter_singles(name)]


SINGLES = ("borderline", "borderline_check", "everyday", "contrast")
PAIRS = ("train", "eval", "check")
EVERY_QUESTION = [q for split in PAIRS for q in questions(split)] + [
    q for name in (*SINGLES, "rewrites") for q in singles(name)
]


@pytest.mark.parametrize(("split", "each"), [("train", 20), ("eval", 10), ("check", 10)])
def test_every_category_has_its_pairs(split, each):
    counts = Counter(pair["category"] for pair in starter_pairs(split))
    assert counts == dict.fromkeys(BEAVERTAILS, each)
    assert all(set(pair) == {"pair_id", "category", "harmful", "benign"} for pair in starter_pairs(split))


@pytest.mark.parametrize(
    ("name", "styles", "each"),
    [("borderline", 8, 15), ("borderline_check", 8, 15), ("everyday", 14, 10), ("contrast", 8, 20)],
)
def test_every_style_has_its_questions(name, styles, each):
    rows = starter_singles(name)
    assert len(rows) == styles * each
    assert set(Counter(row["style"] for row in rows).values()) == {each}
    assert all(set(row) == {"id", "style", "question"} for row in rows)


def test_one_borderline_style_is_not_trained_on():
    """This style shows whether what the contrast questions teach carries over."""
    styles = [{row["style"] for row in starter_singles(name)} for name in ("borderline", "contrast")]
    assert styles[0] - styles[1] == {"public_figure"}


@pytest.mark.parametrize("split", PAIRS)
def test_twins_differ_in_one_to_three_words(split):
    changes = {
        pair["pair_id"]: changed_words(pair["harmful"], pair["benign"]) for pair in starter_pairs(split)
    }
    assert {name: n for name, n in changes.items() if not 1 <= n <= 3} == {}


def test_changed_words_counts_as_levenshtein():
    assert changed_words("How do I kill cats?", "how do I befriend cats") == 1
    assert changed_words("a b c d", "b c d e f") == 3
    assert changed_words("", "one two") == 2
    # An independent bound: no alignment of unchanged blocks needs fewer changes than the distance.
    for pair in starter_pairs("eval"):
        one, other = words(pair["harmful"]), words(pair["benign"])
        blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
        aligned = sum(max(b - a, d - c) for tag, a, b, c, d in blocks if tag != "equal")
        assert abs(len(one) - len(other)) <= changed_words(pair["harmful"], pair["benign"]) <= aligned


def test_questions_can_be_spoken():
    """Letters, commas and apostrophes alone: digits and signs are read out differently by each voice."""
    assert [q for q in EVERY_QUESTION if not re.fullmatch(r"[A-Z][A-Za-z', ]*\?", q)] == []
    assert [q for q in EVERY_QUESTION if not 5 <= len(words(q)) <= 20] == []


def test_no_question_twice():
    repeated = [q for q, n in Counter(" ".join(words(q)) for q in EVERY_QUESTION).items() if n > 1]
    assert repeated == []
    names = [pair["pair_id"] for split in PAIRS for pair in starter_pairs(split)]
    names += [row["id"] for name in (*SINGLES, "rewrites") for row in starter_singles(name)]
    assert len(set(names)) == len(names)


def nearly_equal(first, second):
    """Jaccard index of the sets of words of 0.8 or more, or one word's difference, which 0.8 misses in short
    questions."""
    a, b = first[1], second[1]
    return len(a & b) >= 0.8 * len(a | b) or (len(a ^ b) <= 2 and changed_words(first[0], second[0]) <= 1)


def with_words(questions):
    return [(question, frozenset(words(question))) for question in questions]


def test_evaluation_is_disjoint_from_training():
    """No near-duplicate across the sets, so that none of the evaluation's questions is a training question's
    twin."""
    sets = [with_words(asked) for asked in (*map(questions, PAIRS), *map(singles, SINGLES))]
    near = [
        (first[0], second[0])
        for one, other in itertools.combinations(sets, 2)
        for first, second in itertools.product(one, other)
        if nearly_equal(first, second)
    ]
    assert near == []


def test_every_training_pair_has_a_second_rewrite_near_no_other_question():
    pairs, second = starter_pairs("train"), starter_singles("rewrites")
    assert [row["pair_id"] for row in second] == [pair["pair_id"] for pair in pairs]
    assert all(
        1 <= changed_words(pair["harmful"], row["question"]) <= 3
        for pair, row in zip(pairs, second, strict=True)
    )
    sets = [with_words(asked) for asked in (*map(questions, PAIRS), *map(singles, SINGLES))]
    own = {
        (row["question"], pair[label])
        for pair, row in zip(pairs, second, strict=True)
        for label in ("harmful", "benign")
    }
    asked = with_words(singles("rewrites"))
    near = [
        (one[0], other[0])
        for one in asked
        for other in itertools.chain(*sets)
        if (one[0], other[0]) not in own and nearly_equal(one, other)
    ]
    near += [
        (one[0], other[0]) for one, other in itertools.combinations(asked, 2) if nearly_equal(one, other)
    ]
    assert near == []


@pytest.mark.parametrize("name", SINGLES)
def test_no_single_question_is_nearly_another(name):
    near = [
        (one[0], other[0])
        for one, other in itertools.combinations(with_words(singles(name)), 2)
        if nearly_equal(one, other)
    ]
    assert near == []


@pytest.mark.parametrize("split", PAIRS)
def test_no_question_is_the_twin_of_another_pair(split):
    asked = with_words(questions(split))
    near = [
        (asked[i][0], asked[j][0])
        for i, j in itertools.combinations(range(len(asked)), 2)
        if i // 2 != j // 2 and nearly_equal(asked[i], asked[j])
    ]
    assert near == []
    twins = [nearly_equal(asked[i], asked[i + 1]) for i in range(0, len(asked), 2)]
    assert any(twins)  # the measure does see twins


def ids(**choice):
    return [row["id"] for row in choose_rows(StarterChoice(**choice))]


def test_a_smaller_choice_is_part_of_a_larger_one():
    small = ids(split="eval", pairs_per_category=2, borderline=10, seed=3)
    large = ids(split="eval", pairs_per_category=5, borderline=33, seed=3)
    assert set(small) < set(large)
    assert small[:56] == large[:56]
    assert set(ids(split="eval", pairs_per_category=2, borderline=10, categories=4, seed=3)) < set(small)
    assert ids(split="eval", pairs_per_category=2, borderline=10, seed=4) != small


def test_a_choice_is_balanced():
    rows = choose_rows(StarterChoice("eval", pairs_per_category=3, borderline=16, seed=0))
    assert Counter(row["label"] for row in rows) == {"harmful": 42, "benign": 42, "borderline": 16}
    assert set(Counter(row["category"] for row in rows if row["label"] != "borderline").values()) == {6}
    assert set(Counter(row["category"] for row in rows if row["label"] == "borderline").values()) == {2}
    twins = Counter(row["pair_id"] for row in rows if row["label"] != "borderline")
    assert set(twins.values()) == {2}


def test_kept_questions_are_benign_with_a_role():
    rows = choose_rows(StarterChoice("train", pairs_per_category=1, everyday=15, contrast=8, seed=0))
    kept = [row for row in rows if row.get("role") == "keep"]
    assert Counter(row["label"] for row in rows) == {"harmful": 14, "benign": 14 + 23}
    assert [row["id"].split("-")[0] for row in kept] == ["everyday"] * 15 + ["contrast"] * 8
    assert (
        len({row["category"] for row in kept[:15]}) == 14 and len({row["category"] for row in kept[15:]}) == 8
    )
    moved = choose_rows(
        StarterChoice("train", pairs_per_category=1, everyday=15, contrast=8, contrast_role="mirror", seed=0)
    )
    assert moved == [row if row["id"].startswith("everyday") else without_role(row) for row in rows]


def without_role(row):
    return {name: value for name, value in row.items() if name != "role"}


def test_a_second_rewrite_follows_its_pair():
    rows = choose_rows(StarterChoice("train", pairs_per_category=2, everyday=3, seed=0))
    more = choose_rows(StarterChoice("train", pairs_per_category=2, everyday=3, rewrites_per_pair=2, seed=0))
    assert len(rows) == 59 and len(more) == 59 + 28
    for place in range(28):
        harmful, benign, second = more[3 * place : 3 * place + 3]
        assert [harmful, benign] == rows[2 * place : 2 * place + 2]
        assert (
            second["label"] == "benign" and "role" not in second and second["category"] == harmful["category"]
        )
        assert second["pair_id"] == harmful["pair_id"] and second["question"] not in (
            harmful["question"],
            benign["question"],
        )
    assert more[84:] == rows[56:]


def test_everything_is_chosen_by_none():
    assert len(choose_rows(StarterChoice("train", pairs_per_category=None))) == 560
    assert (
        len(choose_rows(StarterChoice("train", pairs_per_category=None, everyday=None, contrast=None))) == 860
    )
    assert len(choose_rows(StarterChoice("eval", pairs_per_category=None, borderline=None))) == 400


@pytest.mark.parametrize("wrong", [{"pairs_per_category": 11}, {"borderline": 121}, {"categories": 15}])
def test_a_choice_beyond_the_set_is_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}: "):
        choose_rows(StarterChoice("eval", **{"pairs_per_category": 1, **wrong}))


def test_no_borderline_question_is_trained_on():
    with pytest.raises(ValueError, match="evaluation alone"):
        choose_rows(StarterChoice("train", pairs_per_category=1, borderline=1))
    with pytest.raises(ValueError, match="training alone"):
        choose_rows(StarterChoice("eval", pairs_per_category=1, contrast=None))
    with pytest.raises(ValueError, match="Mirror alone"):
        choose_rows(StarterChoice("train", pairs_per_category=1, parallel=True, rewrites_per_pair=2))
