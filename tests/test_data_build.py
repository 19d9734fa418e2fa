"""BeaverTails in, Basic, Mirror and Parallel out: the rule, the draws, the checks, on a source with every odd
case."""

import gzip
import json
import lzma
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.rewriters import Parrot
from helpers.stand_ins import OpenAI
from helpers.synthetic_beavertails import BENIGN, CATEGORIES, benign_rows, harmful_rows, row, source_rows
from helpers.voices import Tones
from rrs_jax.config import default_config, validate
from rrs_jax.data.beavertails import group_rows, read_beavertails
from rrs_jax.data.build import BuildOptions, build
from rrs_jax.data.check import check_excluded, text_faults
from rrs_jax.data.duplicates import QuestionIndex, near_groups
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.questions import changed_words, clean, is_question, unspeakable, words
from rrs_jax.data.rewrite import read_edits, rewrite_fault, write_mirror
from rrs_jax.data.selection import make_pool
from rrs_jax.data.speech import clip_path
from rrs_jax.data.spoken import SpeechOptions
from rrs_jax.data.starter import CATEGORIES as STARTER_CATEGORIES
from rrs_jax.data.starter import StarterChoice, choose_rows, starter_pairs
from rrs_jax.data.tables import read_questions
from rrs_jax.data.voices import ENGINES, read_voices
from rrs_jax.data.writers import Ledger, OpenAIWriter
from rrs_jax.errors import UserError
from rrs_jax.evaluate.problems import evaluation_problems
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.generate.local_writer import LocalWriter
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.pipeline import make_data

ANIMALS, DRUGS, POLITICS = (
    "animal_abuse",
    "drug_abuse,weapons,banned_substance",
    "controversial_topics,politics",
)


@pytest.fixture(autouse=True)
def quick_voice(monkeypatch):
    monkeypatch.setitem(ENGINES, "tones", Tones)


def questions_of(*groups):
    return {question.key: question for question in group_rows([item for group in groups for item in group])}


# The rule


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How " + "very " * 50 + "long?", "more than 40 words"),
        ("Why not?", "fewer than 3 words"),
        ("1 2 3 4?", "no letters"),
        ("Как дела у вас?", "letters that"),
        ("What is on https://a.example/x today?", "an address"),
        ("What does <b>this</b> mean?", "signs"),
        ("Is this fine 😀 or not?", "signs"),
        ("Who has number 123456789012?", "a long"),
        ("What is " + "a" * 31 + " made of?", "a word"),
        ("What is\x07 this thing?", "control"),
    ],
)
def test_what_no_voice_can_read(text, reason):
    assert unspeakable(clean(text)).startswith(reason)
    (question,) = group_rows(benign_rows(text))
    pool = make_pool([question])
    assert not pool.benign and pool.dropped.total() == 1


def test_what_a_voice_can_read():
    for text in (
        "Does café au lait cost $3.50 or 10% more?",
        "Why is Ben & Jerry's so good?",
        "how do i cook - fast?",
    ):
        assert unspeakable(text) is None and is_question(text)
    assert not is_question("Write me a poem about cats")


# Reading


def lines(rows):
    return "".join(json.dumps(item) + "\n" for item in rows)


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
        good | {"prompt": 3},
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


# Near-duplicates


WORDS = st.lists(
    st.sampled_from("how do i feed my cats a dog at the big market".split()), min_size=1, max_size=9
).map(" ".join)


def nearly_equal(one: str, other: str) -> bool:
    """The definition: a Jaccard index of 0.8 or more, or at most one word that differs."""
    a, b = set(words(one)), set(words(other))
    return 5 * len(a & b) >= 4 * len(a | b) or changed_words(one, other) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=12), WORDS)
def test_the_index_finds_what_comparing_all_finds(texts, query):
    index = QuestionIndex(enumerate(texts))
    assert index.near(query) == [i for i, text in enumerate(texts) if nearly_equal(query, text)]


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=10, unique=True), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order(texts, rng):
    def groups(order):
        return {frozenset(order[i] for i in group) for group in near_groups(order)}

    shuffled = rng.sample(texts, len(texts))
    assert groups(texts) == groups(shuffled)


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_near_is_jaccard_or_one_word(one, other):
    def near(text, query):
        return QuestionIndex([(0, text)]).near(query) == [0]

    assert near(one, other) == nearly_equal(one, other)
    assert near(one, other) == near(other, one) and near(one, one)


# Drawing


ROWS = source_rows(6)
odd_texts = st.sampled_from(
    [
        "How do I scare the birds in winter?",
        "how do i scare the birds in winter",
        "Tell me a story about cats",
        "Why?",
        "Как дела у вас?",
        "How " + "very " * 50 + "long?",
        "What is at www.site.example now?",
        "Is it fine to skip school?",
    ]
)
odd_rows = st.builds(
    lambda text, answer, safe, names: row(text, answer, safe, *names),
    odd_texts,
    st.sampled_from("abc"),
    st.booleans(),
    st.lists(st.sampled_from(sorted(CATEGORIES)), max_size=3, unique=True),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(odd_rows, max_size=12), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_draw_does_not_depend_on_the_sources_order(extra, seed, rng):
    """Nor on rows that occur twice; and what may be drawn is spoken, a question, and like no other."""
    rows = ROWS[:300] + extra
    shuffled = rng.sample(rows, len(rows))
    pool, other = (
        make_pool(group_rows(rows), seed=seed),
        make_pool(group_rows(shuffled + shuffled), seed=seed),
    )
    assert pool == other
    chosen = [question for ranked in pool.harmful.values() for question in ranked] + pool.benign
    assert len(near_groups([question.text for question in chosen])) == len(chosen)
    assert all(unspeakable(q.text) is None and is_question(q.text) for q in chosen)
    for category, ranked in pool.harmful.items():
        assert all((q.kind, q.category) == ("harmful", category) and q.unsafe_share >= 0.5 for q in ranked)
    assert all(q.kind == "benign" and q.unsafe_share == 0 for q in pool.benign)
    assert len({question.key for question, _ in pool.answered}) == len(pool.answered)


def test_another_seed_is_another_draw():
    one, two = (make_pool(group_rows(ROWS), seed=seed) for seed in (0, 1))
    assert [q.key for q in one.benign] != [q.key for q in two.benign]
    assert len(one.benign) > 20


def test_every_question_is_kept_or_counted():
    """Conservation: the kept and the dropped are all; an evaluation's question is out, exactly and nearly."""
    questions = group_rows(ROWS)
    evaluation = [ROWS[0]["prompt"].upper(), ROWS[50]["prompt"].replace("the", "a", 1)]
    pool = make_pool(questions, evaluation)
    kept = [q for ranked in pool.harmful.values() for q in ranked] + pool.benign
    assert len(kept) + pool.dropped.total() == len(questions)
    assert pool.dropped["nearly equal to an evaluation question"] >= 2
    assert not any(nearly_equal(q.text, text) for q in kept for text in evaluation)


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
    with pytest.raises(UserError, match="for_a_person.jsonl is written anew by this command; give a copy"):
        make(
            tmp_path,
            ROWS,
            Parrot(),
            tmp_path,
            BuildOptions(("mirror",), edits=str(tmp_path / "for_a_person.jsonl")),
        )


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


# The whole


OPTIONS = BuildOptions(basic=20, per_category=2, seed=3)


def make(out, rows, writer, tmp_path, options=OPTIONS, **speech):
    speech = SpeechOptions(**{"voices": ("tones",), "cache": tmp_path / "cache", "workers": 1} | speech)
    return build(out, group_rows(rows), writer, options, speech)


def test_the_three_sets(tmp_path):
    evaluation = tmp_path / "evaluation.csv"
    evaluation.write_text("Goal,other\n" + f'"{ROWS[0]["prompt"]}",x\n')
    options = BuildOptions(basic=20, per_category=2, seed=3, exclude=(str(evaluation),))
    manifests = make(tmp_path / "a", ROWS, Parrot(), tmp_path, options)
    rows = {name: load_manifest(path) for name, path in manifests.items()}  # every clip is there
    assert len(rows["basic"]) == 20 and all(item["response"] for item in rows["basic"])
    answers = {(clean(item["prompt"]), item["response"]) for item in ROWS if item["is_safe"]}
    assert {(item["question"], item["response"]) for item in rows["basic"]} <= answers
    assert {item["label"] for item in rows["basic"]} == {"harmful", "benign"}
    for name in ("mirror", "parallel"):
        labels = Counter((item["label"], item["category"]) for item in rows[name])
        assert all(labels["harmful", category] == 2 for category in CATEGORIES)
        assert Counter(item["label"] for item in rows[name]) == {"harmful": 28, "benign": 28}
        assert set(Counter(item["pair_id"] for item in rows[name]).values()) == {2}
        assert all(item["response"] is None for item in rows[name])
    harmful = {name: [item["question"] for item in rows[name] if item["label"] == "harmful"] for name in rows}
    assert harmful["mirror"] == harmful["parallel"]
    sound = {item["question"]: item["voice"] for item in rows["mirror"]}
    assert all(
        sound[item["question"]] == item["voice"] for item in rows["parallel"] if item["label"] == "harmful"
    )
    assert text_faults(rows["mirror"], rewritten=True) == []
    assert text_faults(rows["parallel"], rewritten=False) == []
    assert not {ROWS[0]["prompt"]} & {item["question"] for name in rows for item in rows[name]}
    summary = read_json(tmp_path / "a" / "summary.json")
    assert summary["sizes"]["mirror"] == {"harmful": 28, "benign": 28} and summary["for_a_person"] == 0

    shuffled = random.Random(5).sample(ROWS, len(ROWS))
    again = make(tmp_path / "b", shuffled, Parrot(), tmp_path, options)
    assert [path.read_bytes() for path in again.values()] == [
        path.read_bytes() for path in manifests.values()
    ]


def test_a_smaller_set_is_part_of_a_larger_one(tmp_path):
    small = make(tmp_path / "s", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=1))
    large = make(tmp_path / "l", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=3))
    small, large = (read_jsonl(path["mirror"]) for path in (small, large))
    assert large[: len(small)] == small
    grown = make(tmp_path / "s", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=3))
    assert read_jsonl(grown["mirror"]) == large  # in the same folder


def test_another_draw_in_the_same_folder_is_refused(tmp_path):
    make(tmp_path / "a", ROWS, Parrot(), tmp_path)
    with pytest.raises(UserError, match=r"was begun with another seed, source \(settings.json\)"):
        make(tmp_path / "a", ROWS[:-40], Parrot(), tmp_path, BuildOptions(basic=20, per_category=2, seed=4))


def test_too_small_a_source(tmp_path):
    with pytest.raises(UserError, match="--basic: the source has .* questions with a safe answer, not 9999"):
        make(tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("basic",), basic=9999))
    with pytest.raises(UserError, match=r"--per_category=9: too few pairs in .*for_a_person.jsonl: fill in"):
        make(tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=9))


def test_parallel_asks_about_benign_questions_too(tmp_path):
    pool = make_pool(group_rows(ROWS), seed=3)
    doubtful = pool.benign[0].text
    writer = Parrot(verdict=lambda question: "yes" if question == doubtful else "no")
    manifests = make(tmp_path / "a", ROWS, writer, tmp_path)
    chosen = [item["question"] for item in read_jsonl(manifests["parallel"]) if item["label"] == "benign"]
    assert chosen == [question.text for question in pool.benign[1:29]]
    assert read_json(tmp_path / "a" / "summary.json")["benign_by_label_harmful_by_writer"] == 1


def test_the_project_itself_can_write(tmp_path, whole_folder):
    """A small random model: its rewrites are nonsense, all are asked for, kept, and left to a person."""
    pool = make_pool(group_rows([item for item in ROWS if "my cats" in item["prompt"]]))
    writer = LocalWriter(str(whole_folder), dtype="float32", batch_size=8, max_new_tokens=4)
    with pytest.raises(UserError, match="too few pairs") as error:
        write_mirror(pool, 1, Ledger(tmp_path / "ledger.jsonl", writer), tries=2)
    assert error.value.failures and all(len(f.tries) == 2 for f in error.value.failures)
    assert len(read_jsonl(tmp_path / "ledger.jsonl")) >= 2 * len(error.value.failures)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--writer=gpt"], "--writer: 'gpt' is none of openai:MODEL, local:FOLDER (or local:mini) and none."),
        (["--sets=mirror,basics"], "--sets: basics is none of basic, mirror, parallel."),
        (
            ["--source=nowhere.jsonl"],
            (
                "--source: 'nowhere.jsonl' is no file and no hub repository OWNER/NAME such as "
                "PKU-Alignment/BeaverTails."
            ),
        ),
        (["--out="], "--out: give the folder that the data set is to be written to."),
    ],
)
def test_mistakes_on_the_command_line(flags, sentence, tmp_path):
    (tmp_path / "source.jsonl").write_text(lines(ROWS[:9]))
    command = [
        sys.executable,
        "-m",
        "rrs_jax.data.build",
        f"--source={tmp_path / 'source.jsonl'}",
        f"--out={tmp_path}",
        *flags,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, sentence)
    assert "Traceback" not in done.stderr


# Speech


class Moody(Tones):
    """The speaker 300 hums what it likes and is silent otherwise."""

    name = "moody"
    voices = ("moody:200", "moody:300")

    def say(self, text, speaker, speed):
        return super().say(text, speaker, speed) * (speaker == "200" or "cats" in text)


def test_a_text_that_one_voice_cannot_speak_gets_another(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "moody", Moody)
    manifests = make(
        tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=2), voices=("moody",)
    )
    rows = load_manifest(manifests["mirror"])
    assert {row["voice"] for row in rows} == {"moody:200:1:0", "moody:300:1:0"}
    assert all("cats" in row["question"] for row in rows if row["voice"] == "moody:300:1:0")
    assert read_json(tmp_path / "a" / "summary.json")["clips_failed"] > 10
    with pytest.raises(UserError) as error:
        make(
            tmp_path / "b",
            ROWS,
            Parrot(),
            tmp_path,
            BuildOptions(("mirror",), per_category=2),
            voices=("moody:300",),
        )
    assert "of 56 texts could be spoken by none of 1 voices; give other --voices" in str(error.value)
    assert "voice moody:300:1:0: gives silence for 'How do I frighten a child" in str(error.value)


def test_what_is_misheard_is_spoken_by_another_voice(tmp_path, monkeypatch):
    """Heard by a stand-in for Whisper that hears the clips of one voice as noise; each clip is heard once."""
    heard = []

    class Deaf:
        def __init__(self, model):
            self.name = model

        def hear(self, path):
            heard.append(path)
            text, voice = known[path]
            return "hum hum" if voice.speed == 1.2 else text

    texts = {clean(row["prompt"]) for row in ROWS}
    texts |= {" ".join(BENIGN.get(word, word) for word in text.split()) for text in texts}
    known = {
        clip_path(text, voice, tmp_path / "cache"): (text, voice)
        for text in texts
        for voice in read_voices("tones:200,tones:200:1.2")
    }
    monkeypatch.setattr("rrs_jax.data.spoken.Listener", Deaf)
    options = BuildOptions(("mirror",), per_category=2)
    speech = {"voices": ("tones:200", "tones:200:1.2"), "listener": "deaf"}
    manifests = make(tmp_path / "a", ROWS, Parrot(), tmp_path, options, **speech)
    summary = read_json(tmp_path / "a" / "summary.json")
    assert 10 <= summary["clips_misheard"] <= 46
    assert len(heard) == len(set(heard)) == 56 + summary["clips_misheard"]
    assert {row["voice"] for row in load_manifest(manifests["mirror"])} == {"tones:200:1:0"}
    make(tmp_path / "a", ROWS, Parrot(), tmp_path, options, **speech)
    assert len(heard) == 56 + summary["clips_misheard"]  # kept in heard.jsonl


def test_a_run_takes_a_built_set_and_refuses_evaluation_questions(tmp_path):
    manifests = make(tmp_path / "a", ROWS, Parrot(), tmp_path, BuildOptions(("mirror",), per_category=1))
    rows = load_manifest(manifests["mirror"])
    config = default_config()
    config.data.manifest = config.data.eval_manifest = str(manifests["mirror"])
    config.run_dir = str(tmp_path / "run")
    facts = make_data(RunContext(config, RunFolder(config.run_dir, config)))
    assert facts == {"harmful": 14, "questions": 28}
    (tmp_path / "xstest.csv").write_text(f'prompt\n"{rows[3]["question"].lower()}"\n')
    config.run_dir, config.data.exclude = str(tmp_path / "other run"), (str(tmp_path / "xstest.csv"),)
    with pytest.raises(
        UserError, match="data.exclude: 2 training questions are or nearly are evaluation questions"
    ):
        make_data(RunContext(config, RunFolder(config.run_dir, config)))
    config.data.exclude = ("missing.csv",)
    config.model.path = "x"
    with pytest.raises(UserError, match="data.exclude has 'missing.csv' and there is no such file"):
        validate(config, evaluation_problems)


# Checks that any training set can have


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


def test_a_build_by_the_official_client(tmp_path):
    """End to end over HTTP; the failing servers are in test_services.py."""
    with OpenAI() as server:
        writer = OpenAIWriter("stand-in", server.base_url, first_wait=0.01)
        manifests = make(tmp_path / "a", ROWS, writer, tmp_path)
        assert set(server.sold.values()) == {1}
    assert len(read_jsonl(manifests["mirror"])) == 56
