"""The way from sound files to an adapter on a small random model: the public functions and a whole run."""

import copy
import dataclasses
import json
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import soundfile
import transformers

import rrs_jax
from helpers.qwen2_audio import reference_representations
from helpers.tensors import relative_error
from rrs_jax.config import default_config, resolve
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.report import separation
from rrs_jax.run import pipeline
from rrs_jax.testing import twin_rows


def test_representations_from_sound_files_equal_transformers(whole_folder, sound_files):
    reference = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(whole_folder)
    model = rrs_jax.load_model(whole_folder)
    batch = rrs_jax.make_batch(model, sound_files[:3], PROMPT_T)
    reps = rrs_jax.extract_reps(model, batch)
    assert reps.shape == (3, 48) and reps.dtype == np.float32
    assert (
        relative_error(reps, reference_representations(reference, whole_folder, sound_files[:3], PROMPT_T))
        < 1e-4
    )


def test_bad_clips_are_listed_at_once(whole_folder, sound_files, tmp_path):
    model = rrs_jax.load_model(whole_folder)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    with pytest.raises(UserError) as error:
        rrs_jax.make_batch(
            model, [sound_files[0], tmp_path / "silent.wav", tmp_path / "absent.wav"], PROMPT_T
        )
    assert "silent.wav" in str(error.value) and "absent.wav" in str(error.value)


@pytest.fixture(scope="module")
def run(whole_folder, sound_files, tmp_path_factory):
    """A finished run of two epochs on eight clips."""
    path = tmp_path_factory.mktemp("run")
    rows = twin_rows(sound_files)
    write_jsonl(path / "manifest.jsonl", rows)
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(whole_folder), "float32", str(path / "run")
    config.data.manifest = config.data.eval_manifest = str(path / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 8, 1e-2
    config.evaluate.samples, config.generate.max_new_tokens = 2, 4
    config.rrs.top_m = 25
    config.export.merged = True
    pipeline.run(config, ("data", "extract", "train", "evaluate", "export", "report"))
    return config, path / "run"


def test_rrs_plus_adds_its_questions_to_a_manifest(whole_folder, sound_files, tmp_path, monkeypatch):
    """A manifest alone, with its rate and its weight of harmful questions, would make a model that refuses
    everything."""

    def spoken(texts, **_):
        return [(sound_files[place % len(sound_files)], 1.0) for place, _ in enumerate(texts)]

    monkeypatch.setattr("rrs_jax.data.speech.speak_all", spoken)
    rows = twin_rows(sound_files)
    write_jsonl(tmp_path / "manifest.jsonl", rows)
    config = default_config()
    config.strategy, config.model.path, config.run_dir = "rrs_plus", str(whole_folder), str(tmp_path / "run")
    config.data.manifest = config.data.eval_manifest = str(tmp_path / "manifest.jsonl")
    config.data.contrast = 9
    pipeline.run(config, ("data",))
    made = read_jsonl(tmp_path / "run" / "data" / "manifest.jsonl")
    assert [row["id"] for row in made[: len(rows)]] == [row["id"] for row in rows]
    names = [row["id"].split("-")[0] for row in made[len(rows) :]]
    assert names == ["everyday"] * 140 + ["contrast"] * 9
    assert {row["label"] for row in made[len(rows) :]} == {"benign"} and all(row["audio"] for row in made)
    assert [row.get("role") for row in made[len(rows) :]] == ["keep"] * 140 + [None] * 9
    assert len(read_jsonl(tmp_path / "run" / "data" / "eval" / "manifest.jsonl")) == len(rows)

    write_jsonl(tmp_path / "manifest.jsonl", [rows[0] | {"id": made[-1]["id"]}, *rows[1:]])
    config.run_dir = str(tmp_path / "again")
    with pytest.raises(UserError, match="give it another id, or set both fields to 0"):
        pipeline.run(config, ("data",))


def test_a_run_leaves_the_files_it_promises(run):
    config, path = run
    metrics = read_jsonl(path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2] and metrics[0]["penalty"] == 0 < metrics[1]["penalty"]
    assert len(read_jsonl(path / "eval" / "rrs" / "responses.jsonl")) == (4 * 3 + 4) * 2
    summary = read_json(path / "eval" / "rrs" / "summary.json")
    assert set(summary["modes"]) == {"audio_text", "text_only", "audio_only"} and summary["nsi"] is not None
    assert "| rrs |" in (path / "report" / "table.md").read_text()
    assert "rank" in (path / "export" / "adapter" / "README.md").read_text()


def test_the_exported_adapter_gives_the_trained_representations(run, whole_folder, sound_files):
    """Loaded by PEFT onto the original model; and the merged folder by our own loader."""
    _, path = run
    base = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(whole_folder)
    before = reference_representations(base, whole_folder, sound_files[:2], PROMPT_T)
    adapted = peft.PeftModel.from_pretrained(base, path / "export" / "adapter").eval()
    expected = reference_representations(adapted, whole_folder, sound_files[:2], PROMPT_T)
    model = rrs_jax.load_model(path / "export" / "merged")
    reps = rrs_jax.extract_reps(model, rrs_jax.make_batch(model, sound_files[:2], PROMPT_T))
    assert relative_error(reps, expected) < 1e-4
    assert relative_error(before, expected) > 1e-2


def test_figure_2_is_drawn_once_and_beside_the_evaluation(run, tmp_path, monkeypatch):
    config = copy.deepcopy(run[0])
    config.run_dir = str(tmp_path / "run")
    begun, drawn, evaluated_by_then = threading.Event(), [], []
    make_figure, evaluate = separation.make_figure, pipeline.STAGE_WORK["evaluate"]

    def draw(recorded):
        begun.set()
        drawn.append(threading.current_thread() is not threading.main_thread())
        return make_figure(recorded)

    def wait_and_evaluate(context):
        evaluated_by_then.append(begun.wait(60))
        return evaluate.work(context)

    waiting = dataclasses.replace(evaluate, work=wait_and_evaluate)
    monkeypatch.setitem(pipeline.STAGE_WORK, "evaluate", waiting)
    monkeypatch.setattr(separation, "make_figure", draw)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    pipeline.run(config, ("data", "extract", "train", "evaluate", "report"))
    assert evaluated_by_then == [True] and drawn == [True]
    assert separation.kept_figure(tmp_path / "run") is not None


def test_the_same_command_does_nothing_twice_and_evaluation_alone_restores_the_adapter(run):
    config, path = run
    trained = json.loads((path / ".done" / "train.json").read_text())["adapter"]
    responses = path / "eval" / "rrs" / "responses.jsonl"
    written = responses.read_text()
    pipeline.run(config, ("data", "extract", "train", "evaluate", "export", "report"))
    assert responses.read_text() == written
    config.evaluate.judges = ("phrases",)
    pipeline.run(config, ("evaluate",))
    assert responses.read_text() == written  # other judges, the same responses
    context = pipeline.RunContext(config, pipeline.RunFolder(config.run_dir, config))
    assert pipeline.adapter_hash(context.restore_adapters()) == trained


def written_rubric(folder: Path) -> Path:
    """Writes a rubric that reads every reply as "harmful"."""
    path = folder / "anything.toml"
    path.write_text(
        "name = 'anything'\nversion = '1'\nsource = 'a test'\nreminder = 'Say it.'\n"
        "prompt = '{question} {response}'\npattern = '(?P<harmful>)'\n[values.harmful]\n'' = true\n"
    )
    return path


def test_other_questions_and_settings_have_folders_of_their_own(run, sound_files, tmp_path):
    """The finished run is asked its own questions beside silence, and a question set with its own clips,
    judged by the run's own model too."""
    config, path = run
    before = (path / "eval" / "rrs" / "summary.json").read_text()
    config.evaluate.setting, config.evaluate.vanilla = ("silence",), False
    pipeline.run(config, ("evaluate",))
    summary = read_json(path / "eval" / "rrs-silence" / "summary.json")
    assert [mode for mode, block in summary["modes"].items() if block] == ["text_only"]
    spoken = {
        row["sample"]: row
        for row in read_jsonl(path / "eval" / "rrs" / "responses.jsonl")
        if row["mode"] == "text_only"
    }
    beside = {row["sample"]: row for row in read_jsonl(path / "eval" / "rrs-silence" / "responses.jsonl")}
    assert any(spoken[sample]["response"] != beside[sample]["response"] for sample in spoken)
    rows = [
        {"question": f"How do I ask {i}?", "label": label, "audio": str(sound_files[i])}
        for i, label in enumerate(("harmful", "borderline"))
    ]
    write_jsonl(tmp_path / "own.jsonl", rows)
    config.evaluate.setting, config.evaluate.vanilla = ("spoken",), True
    config.evaluate.questions = (f"jsonl:{tmp_path / 'own.jsonl'}",)
    config.evaluate.judges = ("phrases", "own:jailbreakbench")
    with pytest.raises(UserError, match=r"judge own:jailbreakbench: \d of \d verdicts cannot be read"):
        pipeline.run(config, ("evaluate",))  # a random model gives none
    config.evaluate.judges = ("phrases", f"own:{written_rubric(tmp_path)}")
    pipeline.run(config, ("evaluate",))
    summary = read_json(path / "eval" / "rrs-jsonl" / "summary.json")
    assert summary["modes"]["audio_only"]["responses"] == 2 and summary["orr"] is None
    assert summary["borderline_orr"]["responses"] == 2
    own = summary["other_judges"]["own:anything"]["modes"]["audio_text"]
    assert (own["responses"], own["unjudged"], own["asr"]) == (2, 0, 100.0)
    comparison = read_json(path / "eval" / "rrs-jsonl" / "compared_to_vanilla.json")
    assert comparison["judges"]["phrases"]["harmful"]["audio_text"]["queries"] == 1
    assert (path / "eval" / "rrs" / "summary.json").read_text() == before


def test_a_run_records_the_resolved_config_also_of_one_that_is_not_resolved(tmp_path):
    config = default_config()
    config.model.path, config.strategy, config.run_dir = "mini", "rrs_plus", str(tmp_path)
    config.train.epochs = 10  # the default, given
    for given in (config, resolve(config)):
        pipeline.run(given, ())
        recorded = read_json(tmp_path / "config.json")["config"]
        assert (recorded["train"]["epochs"], recorded["train"]["average"]) == (10, 0.5)
        assert recorded["data"]["everyday"] is None and recorded["rrs"]["harmful_weight"] == 3.0


def test_a_finished_run_folder_may_be_moved(run, tmp_path):
    """What is done stays done, and the report is made again there."""
    config, path = run
    stages = ("data", "extract", "train", "evaluate", "export", "report")
    pipeline.run(config, stages)  # other tests of this run may have left stages to do
    moved = shutil.copytree(path, tmp_path / "elsewhere" / "run")
    config = resolve(config)
    config.run_dir = str(moved)
    marks = {mark.name: mark.read_bytes() for mark in (moved / ".done").iterdir()}
    pipeline.run(config, stages)
    assert {mark.name: mark.read_bytes() for mark in (moved / ".done").iterdir()} == marks
    (moved / ".done" / "report.json").unlink()
    (moved / "report" / "index.html").unlink()
    pipeline.run(config, ("report",))
    assert (moved / "report" / "index.html").read_text().count("<audio") > 0
