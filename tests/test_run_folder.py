"""A run folder: what it records, what it lets change, and what it refuses."""

import json
import resource
import shutil

import pytest

from rrs_jax.config import default_config, resolve
from rrs_jax.config.stages import STAGES
from rrs_jax.errors import UserError
from rrs_jax.run.folder import RunFolder, check_disk


@pytest.fixture
def config():
    config = default_config()
    config.model.path = "mini"
    return config


def opened(path, config) -> RunFolder:
    """A folder that a command has had under its lock, which records the config."""
    folder = RunFolder(path, config)
    with folder.locked():
        return folder


def finish(folder: RunFolder, *stages: str) -> None:
    for stage in stages or STAGES:
        folder.mark_done(stage)


def test_config_json_says_what_the_run_is(tmp_path, config):
    config.seed = 7
    opened(tmp_path / "run", config)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["train"]["learning_rate"] == 5e-5 and record["seed"] == 7
    (session,) = record["sessions"]
    assert session["versions"]["jax"] and session["device"]["platform"] == "cpu"
    opened(tmp_path / "run", config)
    assert len(json.loads((tmp_path / "run" / "config.json").read_text())["sessions"]) == 1


def test_the_same_config_goes_on_however_it_is_written(tmp_path, config):
    finish(opened(tmp_path, config), "data")
    config.rrs.top_m = 51  # an int where the default is 51.0
    assert opened(tmp_path, config).stage_done("data")


@pytest.mark.parametrize(
    "name, value",
    [
        ("train.epochs", 3),
        ("rrs.top_m", "positive"),
        ("seed", 1),
        ("data.borderline", 5),
        ("strategy", "vanilla"),
    ],
)
def test_another_config_is_refused_by_field(tmp_path, config, name, value):
    finish(opened(tmp_path, config), "data")
    before = (tmp_path / "config.json").read_bytes()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError) as error:
        opened(tmp_path, config)
    assert f"({name} " in str(error.value) and "--config.run_dir" in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_in_which_no_stage_has_begun_takes_another_config(tmp_path, config):
    with RunFolder(tmp_path, config).locked():
        pass
    config.rrs.refusal_tokens = ("No",)
    opened(tmp_path, config)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["rrs"]["refusal_tokens"] == ["No"]


def test_an_earlier_versions_folder_of_the_preset_goes_on_or_is_refused_in_a_sentence(tmp_path, config):
    """That version recorded the preset's values and had fields that are gone; some of today's it lacked."""
    config.strategy = "rrs_plus"
    record = resolve(config).to_dict()
    record["evaluate"]["split"] = "all"
    del record["lora"]["alpha"]
    (tmp_path / "config.json").write_text(json.dumps({"config": record, "inputs": {}, "sessions": []}))
    (tmp_path / "data").mkdir()
    opened(tmp_path, resolve(config))
    (tmp_path / "config.json").write_text(json.dumps({"config": record, "inputs": {}, "sessions": []}))
    config.train.epochs = 10  # which that version overruled
    with pytest.raises(UserError) as error:
        opened(tmp_path, resolve(config))
    assert "is a run with another config (train.epochs 20 there and 10 now); give another" in str(error.value)
    config.train.epochs, config.lora.alpha = 20, 8.0
    with pytest.raises(UserError, match=r"\(lora.alpha 16.0 there and 8.0 now\)"):
        opened(tmp_path, resolve(config))


@pytest.mark.parametrize(
    "strategy, hashes",
    [
        ("rrs", "1dbe9522faf66b14 d60ad9e2e817d6ab b316f03fa2356232 2d1d0d793482c4e5 26385f8cb4d34daa"),
        (
            "steering_conditional",
            "5ac8c7a8b01a8187 34a0b137ef21081e aea9b8735e894c07 416bb01b0ec3f2f6 01857e586d621650",
        ),
    ],
)
def test_stages_that_an_earlier_version_has_done_are_done(tmp_path, config, strategy, hashes):
    """The hashes are those that version 0.1.0 wrote for the default config of the mini."""
    config.strategy = strategy
    folder = opened(tmp_path, config)
    (tmp_path / ".done").mkdir()
    for stage, done in zip(STAGES, hashes.split(), strict=False):
        (tmp_path / ".done" / f"{stage}.json").write_text(json.dumps({"hash": done}))
        assert folder.stage_done(stage), stage
    config.evaluate.samples = 4
    assert not opened(tmp_path, config).stage_done("evaluate")


def test_where_and_how_fast_may_change(tmp_path, config):
    finish(opened(tmp_path, config))
    config.mesh.fsdp = 4
    config.train.remat = "full"
    config.train.keep_checkpoints = 9
    config.extract.batch_size = 3
    config.generate.batch_size = 3
    config.run_dir = "elsewhere"
    folder = opened(tmp_path, config)
    assert all(folder.stage_done(stage) for stage in STAGES)


def test_another_evaluation_is_done_again_and_its_report(tmp_path, config):
    finish(opened(tmp_path, config))
    config.evaluate.samples = 2
    folder = opened(tmp_path, config)
    assert [stage for stage in STAGES if not folder.stage_done(stage)] == ["evaluate", "report"]


def test_a_stage_done_again_makes_later_ones_undone(tmp_path, config):
    folder = opened(tmp_path, config)
    finish(folder)
    folder.mark_done("train", seconds=3.5)
    assert [stage for stage in STAGES if not folder.stage_done(stage)] == ["evaluate", "export", "report"]
    assert json.loads((tmp_path / ".done" / "train.json").read_text())["seconds"] == 3.5


def test_a_stage_without_what_it_needs_is_refused(tmp_path, config):
    folder = opened(tmp_path, config)
    with pytest.raises(
        UserError, match="extract needs data; export needs train, not done in .*; add data,train"
    ):
        folder.check_order(("extract", "export"))
    with pytest.raises(UserError, match="stages: evaluate needs data and extract and train, not done in"):
        folder.check_order(("evaluate",))
    finish(folder, "data")
    folder.check_order(("extract", "train", "evaluate"))


def test_a_changed_manifest_is_refused(tmp_path, config):
    manifest = tmp_path / "questions.jsonl"
    manifest.write_text("{}\n")
    config.data.manifest = str(manifest)
    finish(opened(tmp_path / "run", config), "data")
    opened(tmp_path / "run", config)
    manifest.write_text("{}\n{}\n")
    with pytest.raises(UserError, match="data.manifest: .* is not what the run in .* began with"):
        opened(tmp_path / "run", config)


def test_a_place_that_cannot_be_written_is_named(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run_dir: .*file/run cannot be written \(.*file is a file\)"):
        opened(tmp_path / "file" / "run", config)


def test_a_full_disk_is_told_before_the_work(tmp_path, config, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**8))
    with pytest.raises(UserError, match="has 0.10 GB free and the run needs about 0.50 GB"):
        opened(tmp_path, config)
    with pytest.raises(UserError, match="has 0.10 GB free and the run needs about 16.00 GB"):
        check_disk(tmp_path, 16 * 10**9)


def test_a_disk_that_takes_names_alone_keeps_nothing_of_the_trial(tmp_path):
    """As a full one does, which this limit stands for: a file is made, and nothing can be written into it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match="run_dir: .* cannot be written"):
            check_disk(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_share_a_folder(tmp_path, config):
    folder = opened(tmp_path, config)
    with folder.locked():
        with pytest.raises(UserError, match="another process works in"), RunFolder(tmp_path, config).locked():
            pass
    with folder.locked():
        pass
