"""The authors' questions: what is read, what is odd, what is left out, the split, the data set, a run."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.authors_files import ANIMALS, DRUGS, PAIRS, SPOKEN, write_questions
from helpers.voices import Tones
from rrs_jax.config import default_config, validate
from rrs_jax.data.authors import convert, describe, evaluation_questions, main, training_rows
from rrs_jax.data.authors_questions import AuthorsPair, manifest_rows, read_authors
from rrs_jax.data.authors_split import leave_out, split_by_text, text_groups
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.spoken import SpeechOptions
from rrs_jax.data.starter import starter_pairs
from rrs_jax.data.voices import ENGINES
from rrs_jax.errors import UserError
from rrs_jax.files import read_json
from rrs_jax.run.context import RunContext
from rrs_jax.run.estimates import count_questions
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.pipeline import make_data


@pytest.fixture(autouse=True)
def quick_voice(monkeypatch):
    monkeypatch.setitem(ENGINES, "tones", Tones)


@pytest.fixture
def clone(tmp_path):
    return write_questions(tmp_path / "clone")


def test_rows_are_paired_in_the_files_order(clone):
    found = read_authors(clone)
    assert [pair.row for pair in found.pairs] == list(range(1, 9))
    first, second = found.pairs[:2]
    assert first.questions == {"harmful": PAIRS[0][2], "benign": PAIRS[0][3]}
    assert second.questions["harmful"] == "What's a way to make dogs fight?"  # a plain quote, one space
    assert (first.category, first.path) == (ANIMALS, "audio_0001")
    assert first.clips["harmful"].path == clone / "BeaverTails_audio" / "audio_0001.wav"
    assert [first.clips[label].seconds for label in ("harmful", "benign")] == [1.0, 2.0]
    assert second.clips == {"harmful": None, "benign": None}
    assert found.counts == {
        "pairs": 8,
        "distinct harmful questions": 7,
        "distinct rewrites": 8,
        "paths": 7,
        "recordings": 5,
    }
    assert read_authors(clone / "data").counts == found.counts | {"recordings": 0}


def test_a_recording_that_stands_at_two_questions_is_not_used(clone):
    """B_audio_0003 is the path of two rewrites, audio_0003 of one question that comes twice."""
    found = read_authors(clone)
    assert [found.pairs[i].clips["benign"] for i in (2, 4)] == [None, None]
    assert [found.pairs[i].clips["harmful"].seconds for i in (2, 4)] == [3.0, 3.0]
    assert found.remarks == ("the recordings B_audio_0003 stand at two different questions and are not used",)


def test_a_rewrite_that_says_the_same_is_named(tmp_path):
    pairs = (*PAIRS[:2], (DRUGS, "audio_0009", "Find my old friend Ann", "find my old friend, Ann."))
    found = read_authors(write_questions(tmp_path / "clone", pairs))
    assert len(found.pairs) == 3
    assert "the same words in row 3" in found.remarks[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_other_encodings(tmp_path, encoding):
    found = read_authors(write_questions(tmp_path / "clone", encoding=encoding))
    assert found.pairs[1].questions["benign"] == "What's a way to make dogs play?"
    told = ["harmful.json is not UTF-8 and is read as Windows-1252"] if encoding == "cp1252" else []
    assert list(found.remarks[: len(told)]) == told and len(found.remarks) == 1 + 2 * len(told)


def changed(clone, name, change):
    path = clone / "data" / name
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(change(rows)))


def put(row, **values):
    return lambda rows: [*rows[:row], rows[row] | values, *rows[row + 1 :]]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("benign.json", lambda rows: rows[:-1], "benign.json: has 7 rows and harmful.json has 8, but row i"),
        ("harmful.json", lambda rows: {"rows": rows}, "harmful.json: holds no list of questions"),
        ("harmful.json", lambda rows: ["a", *rows[1:]], "harmful.json, row 1: is no JSON object"),
        ("harmful.json", put(3, prompt=" "), 'harmful.json, row 4: prompt is " ", no text'),
        ("benign.json", put(3, category=None), "benign.json, row 4: category is null, no text"),
        ("benign.json", put(2, prompt="half \ud83d"), "benign.json, row 3: prompt holds half a character"),
        ("harmful.json", put(0, path="../audio"), "row 1: path '../audio' is no name of a recording"),
        (
            "benign.json",
            put(0, path="B_audio_7"),
            "row 1: path B_audio_7 is not that of the rewrite, B_audio_0001",
        ),
        ("benign.json", put(5, category="other"), "row 6: B_audio_0005 is of category 'other', its harmful"),
    ],
)
def test_what_is_wrong_is_said(clone, name, change, sentence):
    changed(clone, name, change)
    with pytest.raises(UserError) as error:
        read_authors(clone)
    assert sentence in str(error.value)


def test_every_wrong_row_is_said(clone):
    changed(clone, "harmful.json", lambda rows: [{**row, "prompt": True} for row in rows])
    with pytest.raises(UserError, match="8 rows to mend") as error:
        read_authors(clone)
    assert str(error.value).count("prompt is true, no text") == 8


def test_files_that_cannot_be_read_are_said(clone, tmp_path):
    with pytest.raises(
        UserError, match="elsewhere: has no data/harmful.json and data/benign.json; give a clone"
    ):
        read_authors(tmp_path / "elsewhere")
    (clone / "data" / "harmful.json").write_bytes(b'["\x81\xff"]')
    with pytest.raises(UserError, match="harmful.json: is not UTF-8 text"):
        read_authors(clone)
    (clone / "data" / "harmful.json").write_text('[{"prompt": "a",\n "path" 3}]')
    with pytest.raises(UserError, match="harmful.json, line 2: is not valid JSON"):
        read_authors(clone)
    (clone / "data" / "harmful.json").unlink()
    with pytest.raises(UserError, match="harmful.json: cannot be read .*; give a whole clone"):
        read_authors(clone)


def test_recordings_that_cannot_be_used_are_said(clone):
    folder = clone / "BeaverTails_audio"
    (folder / "audio_0001.wav").write_bytes(b"RIFF no sound")
    soundfile.write(folder / "audio_0002.wav", [0.1] * 31 * 8000, 8000)
    with pytest.raises(UserError, match="BeaverTails_audio: 2 recordings cannot be used") as error:
        read_authors(clone)
    assert "audio_0001.wav is not readable as audio; fetch it again, or delete it" in str(error.value)
    assert "audio_0002.wav is 31.0 s long and the models hear 30 s; cut or delete it" in str(error.value)


def test_pairs_near_an_evaluation_question_or_without_a_voice_are_left_out(clone, tmp_path):
    pairs = read_authors(clone).pairs
    asked = "tell me how TOURISTS cross the border!"
    kept, left = leave_out(pairs, [("set.csv", asked)])
    assert [pair.row for pair in kept] == [1, 2, 3, 4, 5, 6]
    assert left == [
        (7, f"'Tell me how tourists cross a border' nearly is {asked!r} of set.csv"),
        (8, f"{PAIRS[7][2]!r} has no recording and cannot be spoken: signs that no voice reads (*)"),
    ]
    _, left = leave_out(pairs[:7], [("set.csv", PAIRS[6][2])])
    assert left == [(7, f"{PAIRS[6][2]!r} stands in set.csv")]
    recorded = replace(pairs[7], clips=pairs[0].clips)
    assert leave_out([recorded], []) == ([recorded], [])
    with pytest.raises(UserError, match="all pairs are left out"):
        leave_out(pairs[6:], [("set.csv", PAIRS[6][2])])


def test_the_starter_sets_evaluation_questions_are_left_out():
    texts = [text for _, text in evaluation_questions()]
    assert len(texts) == 2 * (2 * 140 + 120) + 2 * 2 * 280 + 140
    plain, mute = "Who sells old maps?", {"harmful": None, "benign": None}
    for split in ("eval", "check", "styles_eval", "styles_check"):
        asked = starter_pairs(split)[5]
        stays = AuthorsPair(1, "c", "audio_1", {"harmful": plain, "benign": "Who sells maps?"}, mute)
        pairs = [stays]
        for label, other in (("harmful", "benign"), ("benign", "harmful")):
            pairs.append(replace(stays, questions={label: asked[label], other: plain}))
        kept, left = leave_out(pairs, evaluation_questions())
        assert kept == [stays] and len(left) == 2
        assert all(reason.endswith(f"the starter set's {split}") for _, reason in left)


# The split


def test_groups_are_by_text_and_by_path(clone):
    groups = text_groups(read_authors(clone).pairs)
    together = [{i + 1 for i, other in enumerate(groups) if other == group} for group in groups]
    assert together == [{1}, {2}, {3, 5, 6}, {4}, {3, 5, 6}, {3, 5, 6}, {7}, {8}]


WORDS = "red green blue black white brown pink grey gold plum".split()
QUESTIONS = st.lists(st.sampled_from(WORDS), min_size=4, max_size=5).map(
    lambda words: f"Is {' '.join(words)} it?"
)


def apart(one, other):
    """Neither a Jaccard index of 0.8 nor one word replaced, by other means than the product's."""
    one, other = one.lower().strip("?").split(), other.lower().strip("?").split()
    common, union = set(one) & set(other), set(one) | set(other)
    replaced = len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) <= 1
    return len(common) < 0.8 * len(union) and not replaced


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(QUESTIONS, QUESTIONS), min_size=12, max_size=40), st.integers(0, 3))
def test_no_question_is_nearly_on_both_sides(questions, seed):
    pairs = [
        AuthorsPair(i + 1, "c", f"audio_{i}", {"harmful": one, "benign": other}, {})
        for i, (one, other) in enumerate(questions)
    ]
    groups = text_groups(pairs)
    for i, pair in enumerate(pairs):
        for j, other in enumerate(pairs):
            if groups[i] != groups[j]:
                texts = pair.questions.values(), other.questions.values()
                assert all(apart(one, two) for one in texts[0] for two in texts[1])
    smallest = min(groups.count(group) for group in groups)
    if smallest <= len(pairs) // 4 and len(set(groups)) > 1:
        training, held = split_by_text(pairs, 0.25, seed)
        assert sorted(training + held, key=lambda pair: pair.row) == pairs
        assert 0 < len(held) <= round(0.25 * len(pairs))
        sides = [{groups[pair.row - 1] for pair in side} for side in (training, held)]
        assert not sides[0] & sides[1]


def test_the_split_is_drawn_by_the_seed(clone):
    pairs = read_authors(clone).pairs
    drawn = {tuple(pair.row for pair in split_by_text(pairs, 0.375, seed)[1]) for seed in range(8)}
    assert len(drawn) > 3 and {len(rows) for rows in drawn} == {3}
    assert split_by_text(pairs, 0.375, 5) == split_by_text(pairs, 0.375, 5)
    assert split_by_text(pairs, 0.0, 0) == (list(pairs), [])
    with pytest.raises(UserError, match="--held_out: 0.05 of 8 pairs leaves a side without questions"):
        split_by_text(pairs, 0.05, 0)


# The data set


def test_the_data_set_has_their_recordings_and_speech_for_the_rest(clone, tmp_path, capsys):
    speech = SpeechOptions(voices=("tones:200",), cache=tmp_path / "cache", workers=1)
    manifests = convert(clone, tmp_path / "set", held_out=0.375, seed=5, speech=speech)
    told = capsys.readouterr().err
    assert (
        f"{clone}: 8 pairs, 7 distinct harmful questions, 8 distinct rewrites, 7 paths, 5 recordings" in told
    )
    assert (
        f"{clone}: 9 of 14 questions have no recording in BeaverTails_audio and are spoken by data.voices"
        in told
    )
    rows = {name: load_manifest(path) for name, path in manifests.items()}
    asked = {row["question"] for row in rows["train"]}, {row["question"] for row in rows["held_out"]}
    assert not asked[0] & asked[1] and len(rows["train"] + rows["held_out"]) == 14
    for name, path in manifests.items():
        for row, clip in zip(rows[name], audio_paths(path, rows[name]), strict=True):
            recorded = row["path"] in SPOKEN and row["path"] != "B_audio_0003"
            assert (row["voice"], clip.suffix) == ((None, ".wav") if recorded else ("tones:200:1:0", ".flac"))
            assert row["seconds"] == pytest.approx(soundfile.info(clip).duration, abs=1e-3)
            if recorded:
                source = clone / "BeaverTails_audio" / f"{row['path']}.wav"
                assert clip.read_bytes() == source.read_bytes()
        assert [row["id"] for row in rows[name][:2]] == [
            f"{rows[name][0]['pair_id']}-{label}" for label in ("harmful", "benign")
        ]
    summary = read_json(tmp_path / "set" / "summary.json")
    assert (summary["train"]["pairs"], summary["held_out"]["pairs"]) == (4, 3)
    assert summary["spoken"]["clips"] == 9 and len(summary["left_out"]) == 1
    with pytest.raises(UserError, match="set: was made with another seed, held_out"):
        convert(clone, tmp_path / "set", held_out=0.25, seed=6, speech=speech)
    convert(clone, tmp_path / "set", held_out=0.375, seed=5, speech=speech)


def test_many_pairs_that_are_left_out_are_named_by_their_rows(clone):
    found = read_authors(clone)
    lines = describe(clone, found, found.pairs[:1], [(row, "old") for row in range(1, 26)])
    assert lines[-2:] == [
        f"{clone}: row 20 is left out: old",
        f"{clone}: 5 more rows are left out as well: 21, 22, 23, 24, 25",
    ]


def test_with_all_recordings_no_voice_is_loaded(tmp_path):
    clone = write_questions(tmp_path / "clone", PAIRS[:1], spoken=("audio_0001", "B_audio_0001"))
    manifests = convert(clone, tmp_path / "set", speech=SpeechOptions(voices=("no such voice",)))
    assert [row["voice"] for row in load_manifest(manifests["train"])] == [None, None]
    assert list(manifests) == ["train"]


def test_the_command(clone, tmp_path, capsys):
    (tmp_path / "asked.txt").write_text("Tell me how smugglers cross a border!\n")
    out = ["--out", str(tmp_path / "set"), "--voices=tones:300"]
    assert main([str(clone), *out, f"--exclude={tmp_path / 'asked.txt'}"]) == 0
    printed = capsys.readouterr()
    assert f"train: 6 pairs in {tmp_path / 'set' / 'train' / 'manifest.jsonl'}" in printed.out
    assert "row 7 is left out" in printed.err
    assert main([str(tmp_path), *out]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path}: has no data/harmful.json")
    for wrong in ("1", "-0.1", "half"):
        with pytest.raises(SystemExit) as ended:
            main([str(clone), *out, f"--held_out={wrong}"])
        assert ended.value.code == 2 and f"'{wrong}' is no share" in capsys.readouterr().err


def test_the_command_is_a_module(tmp_path):
    asked = [sys.executable, "-m", "rrs_jax.data.authors", str(tmp_path), "--out", str(tmp_path / "set")]
    ended = subprocess.run(asked, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"{tmp_path}: has no data/harmful.json and data/benign.json; give a clone of the authors' repository,"
        " or the path of a manifest (JSON lines).\n"
    )


# In a run


def test_a_run_takes_the_folder(clone, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "cache"))
    held = tmp_path / "held.jsonl"
    rows = [row | {"audio": None} for row in manifest_rows(read_authors(clone).pairs[3:4])]
    held.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = default_config()
    config.data.manifest, config.data.eval_manifest = str(clone), str(held)
    config.data.voices = ("tones:200",)
    config.run_dir, config.model.path = str(tmp_path / "run"), "mini"
    validate(config)
    assert count_questions(config, tmp_path / "no", tmp_path / "no").train == 16
    folder = RunFolder(config.run_dir, config)
    assert make_data(RunContext(config, folder)) == {"harmful": 6, "questions": 12}
    told = capsys.readouterr().err
    assert "row 4 is left out" in told and str(held) in told and "row 8 is left out" in told
    assert "7 of 12 questions have no recording" in told
    rows = load_manifest(folder.manifest)
    assert [row["pair_id"] for row in rows[::2]] == [f"authors-00{i}" for i in (1, 2, 3, 5, 6, 7)]
    assert rows[0]["audio"] == str(clone / "BeaverTails_audio" / "audio_0001.wav")
    assert [row["voice"] for row in rows[:4]] == [None, None, "tones:200:1:0", "tones:200:1:0"]


def test_a_run_folder_keeps_to_its_questions_and_recordings(clone, tmp_path):
    config = default_config()
    config.data.manifest, config.run_dir = str(clone), str(tmp_path / "run")
    folder = RunFolder(config.run_dir, config)
    with folder.locked():
        folder.mark_done("data")
    RunFolder(config.run_dir, config)
    (clone / "BeaverTails_audio" / "audio_0001.wav").unlink()
    with pytest.raises(UserError, match="data.manifest: .* is not what the run in .* began with"):
        RunFolder(config.run_dir, config)


def test_a_relative_folder_gives_absolute_recordings(clone, monkeypatch):
    monkeypatch.chdir(clone.parent)
    assert training_rows("clone")[0]["audio"] == str(clone / "BeaverTails_audio" / "audio_0001.wav")


def test_other_manifests_are_files(clone):
    config = default_config()
    config.model.path = "mini"
    config.data.manifest = config.data.eval_manifest = str(clone)
    with pytest.raises(UserError, match="data.eval_manifest is .* and there is no such file") as error:
        validate(config)
    assert "data.manifest is" not in str(error.value)
