"""What a run read is known again by its content: another content is refused, another path is not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.tiny_run import ALL, make_tiny_run, restore, tiny_config
from rrs_jax.config import default_config, flatten
from rrs_jax.errors import UserError
from rrs_jax.evaluate.responses import MODEL_CONTENT, ResponseStore
from rrs_jax.files import read_json, with_sum, write_json, write_jsonl
from rrs_jax.run import pipeline
from rrs_jax.run.inputs import model_is_used
from rrs_jax.run.marks import Marks
from rrs_jax.weights import identity
from rrs_jax.weights.safetensors_io import load_file, read_header, save_file

ROW = {"set": "harmful", "id": "a", "mode": "text_only", "sample": 0, "question": "q", "response": "r"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home, backup = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("backup")
    shared = make_tiny_run(home)
    shutil.copytree(home, backup, dirs_exist_ok=True)
    return home, backup, shared


@pytest.fixture
def home(finished):
    yield finished[0]
    restore(finished[1], finished[0])


def change_tensor(folder: Path) -> str:
    """Adds to the largest tensor of the first shard; returns the file's name."""
    file = sorted(folder.glob("*.safetensors"))[0]
    arrays, metadata = load_file(file)
    name = max(arrays, key=lambda name: arrays[name].size)
    save_file(file, arrays | {name: arrays[name] + np.ones((), arrays[name].dtype)}, metadata)
    return file.name


@pytest.mark.parametrize("what", ["weights", "template", "tokenizer"])
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_model_folder_that_was_changed_in_place_is_refused_until_it_is_restored(
    finished, home, what, state
):
    model, config = home / "model", tiny_config(home)
    if what == "weights":
        name = change_tensor(model)
    elif what == "template":
        name = "chat_template.jinja"
        (model / name).write_text("{{ messages }}")
    else:
        name = "tokenizer.json"
        (model / name).write_text((model / name).read_text() + " ")
    if state == "stopped":  # in its evaluation
        for stage in ("evaluate", "export", "report"):
            (home / "run" / ".done" / f"{stage}.json").unlink()
    before = {file: file.read_bytes() for file in (home / "run").rglob("*") if file.is_file()}
    with pytest.raises(UserError) as error:
        pipeline.run(config, ALL, finished[2])
    stale = "extract, train" + (", evaluate, export, report" if state == "finished" else "")
    assert f"({name} changed), and {stale} came of the model before; restore" in str(error.value)
    assert {file: file.read_bytes() for file in (home / "run").rglob("*") if file.is_file()} == before
    shutil.rmtree(model)
    shutil.copytree(finished[1] / "model", model)
    pipeline.run(config, ALL, finished[2])


def test_the_same_folder_by_another_path_is_the_same(finished, home, monkeypatch, capsys):
    marks = {file: file.read_bytes() for file in (home / "run" / ".done").iterdir()}
    (home / "link").symlink_to(home / "model")
    shutil.copytree(home / "model", home / "copy")
    monkeypatch.chdir(home)
    for path in ("model", "link", "./copy", str(home / "copy")):
        config = tiny_config(home)
        config.model.path, config.data.manifest = path, "data/manifest.jsonl"
        pipeline.run(config, ALL, finished[2])
    assert {file: file.read_bytes() for file in (home / "run" / ".done").iterdir()} == marks
    assert capsys.readouterr().err.count("done already") == 4 * len(ALL)
    assert read_json(home / "run" / "config.json")["config"]["model"]["path"] == str(home / "model")


def test_a_stopped_run_goes_on_by_another_path_and_keeps_its_answers(finished, home):
    responses = home / "run" / "eval" / "rrs" / "responses.jsonl"
    answers = responses.read_bytes()
    for stage in ("evaluate", "export", "report"):
        (home / "run" / ".done" / f"{stage}.json").unlink()
    shutil.copytree(home / "model", home / "copy")
    config = tiny_config(home)
    config.model.path = str(home / "copy")
    pipeline.run(config, ALL, finished[2])
    assert responses.read_bytes() == answers


def test_a_clip_that_was_changed_under_its_name_is_refused(finished, home):
    clip = home / "data" / "3.wav"
    soundfile.write(clip, np.random.default_rng(1).normal(size=20_000) * 0.1, 16_000)
    (home / "run" / ".done" / "train.json").unlink()
    with pytest.raises(UserError, match=r"data: .*3\.wav is not what the run in .* began with, and extract,"):
        pipeline.run(tiny_config(home), ALL, finished[2])
    (home / "run" / ".done" / "data.json").unlink()  # also where no mark knows the clips
    with pytest.raises(UserError, match="another content of the model folder or the training clips"):
        pipeline.run(tiny_config(home), ALL, finished[2])


def test_the_folder_of_an_earlier_version_goes_on_and_that_is_told(finished, home, capsys):
    """It wrote no digests."""
    run = home / "run"
    for mark in (run / ".done").iterdir():
        write_json(mark, {k: v for k, v in read_json(mark).items() if k not in ("read", "outputs", "clips")})
    record = read_json(run / "config.json")
    del record["inputs"]["model.path"]
    write_json(run / "config.json", record)
    (run / ".done" / "evaluate.json").unlink()
    pipeline.run(tiny_config(home), ALL, finished[2])
    told = capsys.readouterr().err
    assert "did not record what the model folder holds" in told
    assert "train: done already" in told and "evaluate: done already" not in told
    change_tensor(home / "model")
    with pytest.raises(UserError, match="is not what the run"):
        pipeline.run(tiny_config(home), ALL, finished[2])


def test_large_weights_are_known_by_samples_of_every_tensor(tmp_path, monkeypatch, whole_folder):
    monkeypatch.setattr(identity, "READ_WHOLE", 0)
    monkeypatch.setattr(identity, "SAMPLE", 8)
    model = tmp_path / "model"
    shutil.copytree(whole_folder, model)
    before = identity.folder_identity(model)
    file = sorted(model.glob("*.safetensors"))[0]
    content, (entries, _) = file.read_bytes(), read_header(file)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    for entry in entries.values():  # the last byte of each tensor is among the samples
        last = bytes([content[entry.end - 1] ^ 1])
        file.write_bytes(content[: entry.end - 1] + last + content[entry.end :])
        assert identity.changed_files(before, identity.folder_identity(model)) == [file.name]
    entry = max(entries.values(), key=lambda entry: entry.end - entry.start)
    at = entry.start + 20  # which is none
    file.write_bytes(content)
    whole = identity.folder_identity(model, whole=True)
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    now = identity.folder_identity(model, whole=True)
    assert identity.changed_files(before, now) == [] and identity.changed_files(whole, now) == [file.name]
    assert file.name in identity.written_since(before, now)
    os.utime(file, ns=times)
    assert identity.written_since(before, identity.folder_identity(model)) == []


def test_a_large_file_that_was_written_since_is_told(finished, home, monkeypatch, capsys):
    monkeypatch.setattr(identity, "READ_WHOLE", 0)
    run = home / "run" / "config.json"
    record = read_json(run)
    record["inputs"]["model.path"] = identity.folder_identity(home / "model")
    write_json(run, with_sum(record))
    for mark in (home / "run" / ".done").iterdir():
        content = read_json(mark)
        if content["read"]:
            digest = identity.identity_digest(record["inputs"]["model.path"])
            write_json(mark, with_sum(content | {"read": {"model.path": digest}}))
    for file in (home / "model").glob("*-00001-of-*"):
        os.utime(file)
    pipeline.run(tiny_config(home), ALL, finished[2])
    told = capsys.readouterr().err
    assert told.count("was written since the run began") == 1 and "export: done already" in told
    pipeline.run(tiny_config(home), ALL, finished[2])
    assert "was written since" not in capsys.readouterr().err


def test_answers_of_another_content_of_the_model_are_not_mixed(tmp_path):
    path, first = tmp_path / "responses.jsonl", {"model": "m", MODEL_CONTENT: "1", "seed": 0}
    ResponseStore(path, first).append([ROW])
    assert len(ResponseStore(path, first | {"model": "elsewhere/m"}).rows) == 1
    with pytest.raises(UserError, match=rf"made with other settings \({MODEL_CONTENT}\)"):
        ResponseStore(path, first | {MODEL_CONTENT: "2"})
    write_json(path.with_suffix(".meta.json"), {"made_by": {"model": "m", "seed": 0}})  # an earlier version's
    assert len(ResponseStore(path, first).rows) == 1
    with pytest.raises(UserError, match=r"made with other settings \(model\)"):
        ResponseStore(path, first | {"model": "elsewhere/m"})


def test_a_question_file_that_was_changed_has_the_evaluation_done_again(finished, home, capsys):
    config = tiny_config(home)
    questions = home / "questions.jsonl"
    rows = [{"question": f"How do I ask {i}?", "label": "harmful"} for i in range(2)]
    write_jsonl(questions, rows)
    config.evaluate.questions, config.evaluate.modes = (f"jsonl:{questions}",), ("text_only",)
    config.evaluate.over_refusal_modes = ("text_only",)
    pipeline.run(config, ("evaluate",), finished[2])
    write_jsonl(questions, [*rows, {"question": "And this one?", "label": "harmful"}])
    capsys.readouterr()
    pipeline.run(config, ("evaluate",), finished[2])
    told = capsys.readouterr().err
    assert f"evaluate.questions: jsonl:{questions} is not what the stage evaluate read" in told
    summary = read_json(home / "run" / "eval" / "rrs-jsonl" / "summary.json")
    assert summary["modes"]["text_only"]["queries"] == 3
    pipeline.run(config, ("evaluate",), finished[2])
    assert "evaluate: done already" in capsys.readouterr().err


def test_a_sweeps_log_is_no_work_of_the_model(tmp_path):
    marks = Marks(tmp_path, flatten(default_config()))
    for name in ("config.json", "log.txt"):
        (tmp_path / name).touch()
    assert not model_is_used(marks)
    (tmp_path / "responses.jsonl").touch()
    assert model_is_used(marks)
