"""Tuning behind a safety training, from a finished run to the figures of what is left of it."""

import shutil
from pathlib import Path

import pytest

from helpers.sweeps import sweep_config
from helpers.voices import Tones
from rrs_jax.config.training import train_config
from rrs_jax.data.engines import ENGINES
from rrs_jax.data.starter import starter_singles
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.report.results import read_results
from rrs_jax.run import pipeline
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.recorded_epochs import adapter_hash
from rrs_jax.run.sweep import read_sweep, run_sweep

SWEEP = str(Path(__file__).parent.parent / "benchmarks" / "research" / "later_tuning.py")
STAGES = ("data", "extract", "train", "evaluate")


class Hum(Tones):
    """An engine under the name of the one whose voices are drawn from where none are named."""

    name, voices = "hibari", ("hibari:300",)


@pytest.fixture(scope="module")
def trained(whole_folder, sound_files, tmp_path_factory):
    """The config of a finished run, whose rank is not the default."""
    path = tmp_path_factory.mktemp("later")
    config = sweep_config(whole_folder, sound_files, path)
    config.run_dir, config.lora.rank, config.seed = str(path / "sweep" / "rrs"), 3, 5
    pipeline.run(config, ("data", "extract", "train", "export"))
    return config


def base_config(trained, path):
    config = trained.copy_and_resolve_references()
    config.lora.rank, config.seed, config.run_dir = 8, 0, str(path / "tuned")
    config.evaluate.modes, config.evaluate.over_refusal_modes = ("text_only",), ()
    config.lora.start = trained.run_dir
    return config


def test_tuning_goes_on_from_the_adapter_on_everyday_questions_alone(trained, tmp_path, monkeypatch):
    """With a tenth of the steps."""
    monkeypatch.setitem(ENGINES, "hibari", Hum)
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "cache"))
    config, sweep = base_config(trained, tmp_path), tmp_path / "sweep.py"
    sweep.write_text(Path(SWEEP).read_text().replace('"train.epochs": 20,', '"train.epochs": 2,'))
    run_sweep(config, str(sweep), STAGES)
    everyday = {row["question"] for row in starter_singles("everyday")}
    start = adapter_hash(RunContext(trained, RunFolder(trained.run_dir, trained)).restore_adapters())
    for name in ("tuned_rrs", "tuned_vanilla"):
        folder = tmp_path / "tuned" / name
        rows = read_jsonl(folder / "data" / "manifest.jsonl")
        assert {row["question"] for row in rows} == everyday
        assert {row["label"] for row in rows} == {"benign"}
        steps = read_jsonl(folder / "metrics.jsonl")
        assert len(steps) == 20 and steps[-1]["loss"] != steps[0]["loss"]
        summary = read_json(folder / "eval" / "sft_full" / "summary.json")
        assert summary["modes"]["text_only"]["responses"] == 1  # evaluate.limit
        assert read_json(folder / ".done" / "train.json")["adapter"] != start
    runs = read_sweep(str(sweep), config)
    own = RunContext(runs["tuned_rrs"], RunFolder(runs["tuned_rrs"].run_dir, runs["tuned_rrs"]))
    assert adapter_hash(own.start_adapters()) == start
    answers = [read_jsonl(tmp_path / "tuned" / name / "sft_targets.jsonl") for name in runs]
    assert answers[0] == answers[1]  # the vanilla model's, whatever the adapter says
    (tuned,) = [recipe for recipe in read_results([tmp_path / "tuned" / "tuned_rrs"]).recipes]
    assert tuned.key is None  # no row of the paper


def test_a_whole_sweep_is_tuned_and_what_is_none_is_told(trained, tmp_path):
    config = base_config(trained, tmp_path)
    shutil.copytree(Path(trained.run_dir), Path(trained.run_dir).with_name("rrs-seed1"), dirs_exist_ok=True)
    config.lora.start = str(Path(trained.run_dir).parent)
    runs = read_sweep(SWEEP, config)
    assert list(runs) == ["tuned_vanilla", "tuned_rrs", "tuned_rrs-seed1"]
    assert runs["tuned_vanilla"].lora.start is None and runs["tuned_vanilla"].lora.rank == 8
    for run in list(runs.values())[1:]:
        assert (run.lora.rank, run.seed, run.penalty.weight) == (3, 5, 0.0)
        assert run.train.learning_rate == config.train.learning_rate
        assert train_config(run).total_steps(140) == 200
    config.lora.start = str(tmp_path)
    with pytest.raises(UserError, match="lora.start: .* is no finished run, nor a sweep with one"):
        read_sweep(SWEEP, config)
