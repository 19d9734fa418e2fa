"""The styles set: as many pairs of each category in each style, some of which can be left out of training."""

import re
from collections import Counter

import pytest

from helpers.voices import Tones
from rrs_jax.config import default_config, validate
from rrs_jax.config.command_line import check_overrides
from rrs_jax.config.vocabulary import CATEGORIES, STYLES, read_categories
from rrs_jax.data.duplicates import QuestionIndex
from rrs_jax.data.engines import ENGINES
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.questions import changed_words
from rrs_jax.data.starter import StarterChoice, build_starter, choose_rows, starter_pairs, starter_singles
from rrs_jax.errors import UserError
from rrs_jax.files import write_jsonl
from rrs_jax.run.data_stage import evaluation_choice, training_choice

SPLITS = {"styles_train": 10, "styles_eval": 2, "styles_check": 2}  # pairs of a category in a style
STARTER_PAIRS = ("train", "eval", "check")
STARTER_SINGLES = ("borderline", "borderline_check", "everyday", "contrast", "rewrites")
WORDS = {"long_context": (22, 50), "keywords": (3, 9)}  # others have 4 to 24


def words(question):
    return re.findall(r"[a-z']+", question.lower())


@pytest.mark.parametrize(("split", "each"), SPLITS.items())
def test_every_category_has_its_pairs_in_every_style(split, each):
    pairs = starter_pairs(split)
    cells = Counter((pair["category"], pair["style"]) for pair in pairs)
    assert cells == {(category, style): each for category in CATEGORIES for style in STYLES}
    assert all(list(pair) == ["pair_id", "category", "style", "harmful", "benign"] for pair in pairs)
    assert all(
        re.fullmatch(rf"{split.replace('_', '-')}-[a-z]+-[a-z-]+-\d\d", pair["pair_id"]) for pair in pairs
    )
    assert len({pair["pair_id"] for pair in pairs}) == len(pairs)


def test_everyday_questions_are_of_as_many_topics_as_those_of_training():
    rows, trained = starter_singles("everyday_check"), starter_singles("everyday")
    assert all(list(row) == ["id", "style", "question"] for row in rows)
    assert Counter(row["style"] for row in rows) == Counter(row["style"] for row in trained)
    assert len({row["id"] for row in rows}) == len(rows) == 140


@pytest.mark.parametrize("split", SPLITS)
def test_questions_can_be_spoken(split):
    faults = []
    for pair in starter_pairs(split):
        low, high = WORDS.get(pair["style"], (4, 24))
        ending = "" if pair["style"] == "keywords" else "[.?]"
        for question in (pair["harmful"], pair["benign"]):
            spoken = re.fullmatch(rf"[A-Za-z][A-Za-z',;:.?! -]*{ending}", question)
            if not spoken or not low <= len(question.split()) <= high:
                faults.append(question)
    assert faults == []


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_begin_alike_and_differ_in_a_few_words(split):
    for pair in starter_pairs(split):
        harmful, benign = words(pair["harmful"]), words(pair["benign"])
        assert 1 <= changed_words(pair["harmful"], pair["benign"]) <= 7, pair
        if pair["style"] != "keywords":  # which may have nothing but the words that differ
            assert harmful[0] == benign[0], pair


def test_no_question_is_nearly_another_one():
    """Neither of another pair, nor of another file, nor of the starter set, also where trained on."""
    index = QuestionIndex()
    for split in STARTER_PAIRS:
        for pair in starter_pairs(split):
            for label in ("harmful", "benign"):
                index.add(pair["pair_id"], pair[label])
    for name in STARTER_SINGLES:
        for row in starter_singles(name):
            index.add(row["id"], row["question"])
    near = []
    for row in starter_singles("everyday_check"):
        near += [(row["id"], other) for other in index.near(row["question"])]
        index.add(row["id"], row["question"])
    for split in SPLITS:
        for pair in starter_pairs(split):
            for label in ("harmful", "benign"):
                near += [(pair["pair_id"], other) for other in index.near(pair[label])]
            for label in ("harmful", "benign"):
                index.add(pair["pair_id"], pair[label])
    assert near == []
    first = starter_pairs("styles_eval")[0]
    assert index.near(first["harmful"]) != []  # the measure does see what is there


def rows_of(**choice):
    return choose_rows(StarterChoice(**choice))


def test_what_is_left_out_is_left_out_and_all_else_is_there():
    left_out = {"left_out_styles": ("role_play", "keywords"), "left_out_categories": ("self_harm",)}
    rows = rows_of(split="styles_train", **left_out)
    cells = Counter((row["category"], row["style"]) for row in rows)
    kept_styles = [style for style in STYLES if style not in left_out["left_out_styles"]]
    kept_categories = [category for category in CATEGORIES if category != "self_harm"]
    assert cells == {(category, style): 20 for category in kept_categories for style in kept_styles}
    by_id = {row["id"]: row for row in rows_of(split="styles_train")}
    assert all(by_id[row["id"]] == row for row in rows)
    starter = rows_of(split="train", left_out_categories=("self_harm", CATEGORIES[0]))
    assert Counter(row["category"] for row in starter) == dict.fromkeys(set(kept_categories[1:]), 40)
    with pytest.raises(UserError, match="data.left_out_categories, data.left_out_styles: leave out every"):
        rows_of(split="styles_train", left_out_styles=STYLES)
    with pytest.raises(ValueError, match="no styles to leave out"):
        StarterChoice("train", left_out_styles=("keywords",))


def test_styles_take_turns_in_a_category():
    rows = rows_of(split="styles_train", pairs_per_category=10, seed=3)
    assert set(Counter((row["category"], row["style"]) for row in rows).values()) == {2}
    assert rows == rows_of(split="styles_train", pairs_per_category=25, seed=3)[: len(rows)]
    first = rows_of(split="styles_train", pairs_per_category=1, seed=3)
    assert first == rows[:28] and len({row["style"] for row in first}) > 3
    assert first != rows_of(split="styles_train", pairs_per_category=1, seed=4)
    with pytest.raises(UserError, match="pairs_per_category: 81 is not between 0 and 80"):
        rows_of(split="styles_train", pairs_per_category=81, left_out_styles=("keywords", "task"))


def test_evaluation_asks_everyday_questions_that_are_not_trained_on():
    rows = rows_of(split="styles_check", pairs_per_category=1, borderline=8, everyday=15)
    assert Counter(row["label"] for row in rows) == {
        "harmful": 14,
        "benign": 14,
        "borderline": 8,
        "everyday": 15,
    }
    everyday = [row for row in rows if row["label"] == "everyday"]
    assert len({row["category"] for row in everyday}) == 14 and not any("role" in row for row in everyday)
    trained = {row["question"] for row in rows_of(split="styles_train", everyday=None)}
    assert not trained & {row["question"] for row in rows}
    by_file = {row["id"] for row in starter_singles("borderline_check")}
    assert {row["id"] for row in rows if row["label"] == "borderline"} <= by_file
    with pytest.raises(ValueError, match="second rewrites"):
        StarterChoice("styles_train", rewrites_per_pair=2)


LEFT_OUT = "privacy_violation,hate_speech,offensive_language,self_harm"


def config_with(**fields):
    config = default_config()
    config.model.path = "mini"
    config.update_from_flattened_dict({f"data.{name}": value for name, value in fields.items()})
    return config


def test_a_config_leaves_out_of_training_alone():
    config = config_with(
        train_set="styles",
        eval_set="styles",
        left_out_styles=("role_play", "keywords", "indirect"),
        left_out_categories=tuple(LEFT_OUT.split(",")),  # as a command line gives it
    )
    validate(config)
    trained, asked = choose_rows(training_choice(config)), choose_rows(evaluation_choice(config))
    assert len(trained) == 2 * 11 * 7 * 10
    assert {row["style"] for row in trained} == set(STYLES) - {"role_play", "keywords", "indirect"}
    assert not {row["category"] for row in trained} & set(read_categories((LEFT_OUT,)))
    assert Counter(row["label"] for row in asked) == {"harmful": 280, "benign": 280, "borderline": 120}
    assert {row["style"] for row in asked if "style" in row} == set(STYLES)
    config.strategy = "sft_shallow_parallel"
    parallel = [row for row in choose_rows(training_choice(config)) if row["label"] == "benign"]
    assert len(parallel) == 770 and {row["id"][:17] for row in parallel} == {"parallel-everyday"}


def test_names_of_categories_keep_their_commas():
    names = ("privacy_violation", "hate_speech,offensive_language", "self_harm")
    assert read_categories(names) == read_categories(LEFT_OUT.split(",")) == names
    assert read_categories(()) == ()
    assert read_categories(",".join(CATEGORIES).split(",")) == CATEGORIES
    for wrong in (("hate_speech",), ("self_harm", "offensive_language"), ("self_harmful",)):
        with pytest.raises(ValueError, match="begins with no category"):
            read_categories(wrong)
    check_overrides(["launch.py", f"--config.data.left_out_categories={LEFT_OUT}"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"left_out_categories": ("hate_speech",)}, "data.left_out_categories is .* give different categ"),
        (
            {"left_out_categories": ("self_harm", "self_harm")},
            "data.left_out_categories is .* give different",
        ),
        ({"left_out_styles": ("shouting",)}, "data.left_out_styles is .*among question, imperative"),
        ({"left_out_styles": ("keywords",)}, "data.left_out_styles needs data.train_set=styles"),
        ({"train_set": "styles", "rewrites_per_pair": 2}, "data.rewrites_per_pair is 2"),
        ({"train_set": "styles", "manifest": __file__}, "data.train_set is about the built-in pairs"),
        ({"left_out_categories": ("self_harm",), "manifest": __file__}, "data.left_out_categories is about"),
        ({"eval_set": "style"}, "one of eval, check, styles, styles_check"),
    ],
)
def test_choices_that_contradict_are_told(fields, said):
    with pytest.raises(UserError, match=said):
        validate(config_with(**fields))


def test_rows_of_a_manifest_may_have_a_style(tmp_path):
    row = {"label": "harmful", "question": "Where do I fence?"}
    path = tmp_path / "manifest.jsonl"
    write_jsonl(path, [row | {"style": "imperative"}, row | {"style": 3}, row | {"style": None}, row])
    rows = load_manifest(path, need_audio=False)
    assert [row.get("style") for row in rows] == ["imperative", "3", None, None]
    write_jsonl(path, [row | {"style": {"tone": 1}}])
    with pytest.raises(UserError, match="line 1.*style is .*no text"):
        load_manifest(path, need_audio=False)


def test_spoken_rows_keep_their_style(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "tones", Tones)
    choice = StarterChoice("styles_train", pairs_per_category=1, categories=2)
    path = build_starter(tmp_path / "data", choice, voices="tones:200", cache=tmp_path / "cache")
    assert {row["style"] for row in load_manifest(path)} == {row["style"] for row in choose_rows(choice)}
