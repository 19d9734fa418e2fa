"""`data.bad_rows` in a run's data stage, and answers and sheets that are read by the same rules."""

import json

import numpy as np
import pytest
import soundfile

from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges.sheet import read_sheet
from rrs_jax.evaluate.measure import measure
from rrs_jax.evaluate.summary import by_category
from rrs_jax.files import read_jsonl
from rrs_jax.run import pipeline
from rrs_jax.testing import twin_rows

BAD = {
    "no audio": lambda folder, row: row | {"audio": "absent.wav"},
    "silent": lambda folder, row: row | {"audio": silent(folder)},
    "cut": lambda folder, row: row | {"audio": cut(folder, row["audio"])},
    "no label": lambda folder, row: {name: value for name, value in row.items() if name != "label"},
    "half a character": lambda folder, row: row | {"question": "Why \ud83d?"},
    "an unknown clip": lambda folder, row: {**row, "audio": None, "recording": "a.wav"},
    "two clips": lambda folder, row: row | {"audio": ["a.wav", "b.wav"]},
}


def silent(folder) -> str:
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    return "silent.wav"


def cut(folder, clip) -> str:
    with open(clip, "rb") as file:
        (folder / "cut.wav").write_bytes(file.read()[:9_000])
    return "cut.wav"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_ends_the_run_or_is_left_out_and_listed(tmp_path, sound_files, capsys, kind):
    rows = twin_rows(sound_files)
    rows[2] = BAD[kind](tmp_path, rows[2])
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = default_config()
    config.model.path, config.run_dir = "/no/model", str(tmp_path / "run")
    config.data.manifest = config.data.eval_manifest = str(tmp_path / "m.jsonl")
    with pytest.raises(UserError):
        pipeline.run(config, ("data",))
    capsys.readouterr()
    config.data.bad_rows, config.run_dir = "skip", str(tmp_path / "other")
    pipeline.run(config, ("data",))
    said = capsys.readouterr().err
    assert said.count("1 of 8 rows are left out (data.bad_rows=skip):") == 2  # of both manifests
    for name in ("data/manifest.jsonl", "data/eval/manifest.jsonl"):
        kept = [row["id"] for row in read_jsonl(tmp_path / "other" / name)]
        assert kept == [row["id"] for place, row in enumerate(rows) if place != 2]


@pytest.mark.parametrize("same", [0, 3])
def test_evaluation_questions_that_are_trained_on_are_told(tmp_path, sound_files, capsys, same):
    rows = twin_rows(sound_files)
    other = [{**row, "question": f"Is it {place}?"} for place, row in enumerate(rows)]
    for place in range(same):  # case and punctuation make no other question
        other[place]["question"] = rows[place]["question"].upper().replace("?", " ?")
    for name, some in (("train", rows), ("eval", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    config = default_config()
    config.model.path, config.run_dir = "/no/model", str(tmp_path / "run")
    config.data.manifest, config.data.eval_manifest = (
        str(tmp_path / f"{n}.jsonl") for n in ("train", "eval")
    )
    pipeline.run(config, ("data",))
    told = f"data.eval_manifest: {same} of {len(rows)} evaluation questions are training questions too"
    assert (told in capsys.readouterr().err) == (same > 0)


@pytest.mark.parametrize("wrong", [{"data.eval_manifest": "bad.jsonl"}, {"data.eval_pairs_per_category": 11}])
def test_the_same_folder_takes_other_evaluation_questions_than_those_that_were_refused(
    tmp_path, sound_files, monkeypatch, wrong
):
    monkeypatch.chdir(tmp_path)
    good = twin_rows(sound_files)
    bad = [row | {"audio": silent(tmp_path)} for row in good]
    for name, rows in (("good", good), ("bad", bad)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = default_config()
    config.model.path, config.run_dir, config.data.manifest = "/no/model", "run", "good.jsonl"
    mistaken = config.copy_and_resolve_references()
    mistaken.update_from_flattened_dict(wrong)
    with pytest.raises(UserError, match="cannot be used|data.eval_pairs_per_category: 11 is not"):
        pipeline.run(mistaken, ("data",))
    config.data.eval_manifest = "good.jsonl"
    assert pipeline.run(config, ("data",)) is None
    assert len(read_jsonl(tmp_path / "run/data/eval/manifest.jsonl")) == 8


ANSWER = {"question": "Why?", "response": "Because.", "label": "benign"}


@pytest.mark.parametrize("categories", [(3, "kitchen"), (None, 2.5), ([1], ["a", "b"]), ({"a": True}, "x")])
def test_answers_of_mixed_categories_are_summed_up(categories):
    rows = [ANSWER | {"id": n, "category": category} for n, category in enumerate(categories)]
    found = measure(rows)["by_category"]["benign"]
    assert len(found) == 2 and all(isinstance(name, str) for name in found)


@pytest.mark.parametrize("field", ["question", "label", "id", "response"])
@pytest.mark.parametrize("value", [True, {"a": 1}, ["a", "b"]])
def test_an_answers_field_that_is_no_text_is_named(field, value):
    with pytest.raises(UserError, match=f"answer 1: {field} is .*no text"):
        measure([ANSWER | {field: value}])


def test_the_id_0_is_an_id():
    summary = measure([ANSWER | {"id": 0}, ANSWER | {"id": 1}, ANSWER | {"id": 0, "question": "How?"}])
    assert summary["orr"]["queries"] == 2 and summary["orr"]["responses"] == 3


def test_judgements_on_disk_with_categories_of_mixed_types():
    class Judge:
        name, sees = "phrases", frozenset({"refusal"})

    row = {"judge": "phrases", "mode": "audio_text", "set": "benign", "refusal": False, "kind": "answer"}
    rows = [row | {"id": str(n), "category": category} for n, category in enumerate([3, "kitchen", None])]
    assert {*by_category(rows, Judge())["benign"]} == {"3", "kitchen", "none"}


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_stray_quotation_mark_in_a_sheet_is_its_lines_fault(tmp_path, place):
    lines = ["set,mode,id,sample,question,response,refusal,harmful"]
    lines += [f"benign,audio_text,{n},0,Why {n}?,Because,no,no" for n in range(3)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    assert len(read_sheet(path)) == 3
    lines[place] = lines[place].replace("Why", '"Why')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"line {place + 1}: has a quotation mark that nothing closes"):
        read_sheet(path)
