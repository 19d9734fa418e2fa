"""Where a run's figures go: files, TensorBoard's events, and wandb, which a module with its signatures stands
for."""

import importlib.util
import inspect
import resource
import struct
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.run import pipeline, preflight
from rrs_jax.testing import twin_rows
from rrs_jax.train.metrics import MetricsLog


class WandbRun:
    def __init__(self, begun: dict):
        self.begun, self.axes, self.logged, self.finished = begun, {}, [], False

    def log(self, data, step=None, commit=None) -> None:
        last = max((at for at, _ in self.logged if at is not None), default=0)
        if step is None or step >= last:  # wandb drops what lies behind
            self.logged.append((step, data))

    def define_metric(
        self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None
    ) -> None:
        self.axes[name] = step_metric

    def finish(self, exit_code=None) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of wandb; its list `runs` has the runs begun so far."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)
    module.runs = []

    def init(
        entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
        config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None, job_type=None,
        mode=None, force=None, reinit=None, resume=None, resume_from=None, fork_from=None, save_code=None,
        tensorboard=None, sync_tensorboard=None, monitor_gym=None, settings=None,
    ):  # fmt: skip
        module.runs.append(WandbRun({name: value for name, value in locals().items() if value is not None}))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return module


def events(folder: Path) -> dict[tuple[str, int], float]:
    """TensorBoard's scalars by tag and step, of all files of a folder: records of TFRecord."""
    found = {}
    for file in sorted(folder.glob("events*")):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            place += length + 16
    return found


def make_config(whole_folder, sound_files, path: Path):
    write_jsonl(path / "manifest.jsonl", twin_rows(sound_files))
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(whole_folder), "float32", str(path / "run")
    config.data.manifest = config.data.eval_manifest = str(path / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 4, 1e-3
    config.train.log_to = ("jsonl", "tensorboard", "wandb")
    config.train.schedule = "linear"
    config.evaluate.samples, config.evaluate.modes, config.generate.max_new_tokens = 1, ("audio_text",), 3
    config.evaluate.epochs = (1,)
    config.report.representation_epochs = ()
    return config


def test_a_runs_figures_and_rates_are_in_all_places(wandb, whole_folder, sound_files, tmp_path):
    config = make_config(whole_folder, sound_files, tmp_path)
    run = Path(config.run_dir)
    pipeline.run(config, ("data", "extract", "train", "evaluate"))
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    places = {"vanilla": (run / "eval/vanilla", 0), "rrs": (run / "eval/rrs", 4)}
    rates = {(row["evaluation"], row["step"]): row for row in read_jsonl(run / "rates.jsonl")}
    assert set(rates) == {("vanilla", 0), ("rrs", 2), ("rrs", 4)}
    summaries = {(name, step): read_json(folder / "summary.json") for name, (folder, step) in places.items()}
    summaries["rrs", 2] = read_json(run / "eval/epochs/1/rrs/summary.json")
    scalars = events(run / "tensorboard")
    for (name, step), summary in summaries.items():
        expected = {"asr_audio_text": summary["modes"]["audio_text"]["asr"], "orr": summary["orr"]["rate"]}
        if name != "vanilla":
            expected["nsi"] = summary["nsi"]["average"]
        for figure, value in expected.items():
            assert rates[name, step][figure] == value
            assert scalars[f"eval/{name}/{figure}", step] == pytest.approx(value, rel=1e-6)
        assert rates[name, step]["asr_text_only"] is None and rates[name, step]["borderline_orr"] is None
        assert (f"eval/{name}/asr_text_only", step) not in scalars
    for row in rows:
        for name in ("loss", "penalty", "learning_rate", "grad_norm"):
            assert scalars[f"train/{name}", row["step"]] == pytest.approx(row[name], rel=1e-6)

    training, evaluation = wandb.runs
    assert training.finished and evaluation.finished and training.axes == {"eval/*": "eval/step"}
    assert training.begun["id"] == evaluation.begun["id"] == (run / "wandb/id").read_text()
    assert training.begun["resume"] == "allow" and training.begun["dir"] == str(run)
    assert training.begun["config"]["train"]["epochs"] == 2 and training.begun["project"] == "rrs-jax"
    assert [step for step, _ in training.logged] == [1, 2, 3, 4]
    assert [data["train/loss"] for _, data in training.logged] == [row["loss"] for row in rows]
    assert [(at, data["eval/step"]) for at, data in evaluation.logged] == [(None, 0), (None, 2), (None, 4)]
    assert evaluation.logged[2][1]["eval/rrs/nsi"] == summaries["rrs", 4]["nsi"]["average"]

    # Evaluated again, a model has one line; the places may change in the midst of a run.
    config.train.log_to = ("jsonl",)
    config.evaluate.judges = ("phrases",)
    pipeline.run(config, ("evaluate",))
    assert len(read_jsonl(run / "rates.jsonl")) == 3 and len(wandb.runs) == 2


def test_torch_is_not_imported_for_tensorboard_and_can_be_imported_behind_it(tmp_path):
    program = (
        "import sys, pathlib; from rrs_jax.train.metrics import TensorBoard; "
        f"writer = TensorBoard(pathlib.Path({str(tmp_path)!r}), None); "
        "writer.write('train', 1, {'loss': 0.5}); writer.close(); "
        "print('torch' in sys.modules); import torch; print(torch.ones(2).sum().item())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "2.0"] and list((tmp_path / "tensorboard").iterdir())


def test_a_run_that_goes_on_drops_what_it_will_write_again(wandb, tmp_path):
    with MetricsLog(tmp_path, ("jsonl", "tensorboard", "wandb"), 0) as log:
        for step in (1, 2, 3):
            log.write("train", step, epoch=1, loss=float(step), loss_harmful=None)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # as a kill leaves it
    with MetricsLog(tmp_path, ("jsonl", "tensorboard", "wandb"), 2) as log:
        log.write("train", 3, epoch=1, loss=30.0, loss_harmful=1.0)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"], row["loss_harmful"]) for row in rows] == [
        (1, 1.0, None), (2, 2.0, None), (3, 30.0, 1.0),
    ]  # fmt: skip
    assert wandb.runs[0].begun["id"] == wandb.runs[1].begun["id"]
    assert "train/loss_harmful" not in wandb.runs[0].logged[0][1]


def test_figures_on_a_full_disk_end_in_a_sentence_and_nothing_waits(tmp_path):
    """A limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError, match=r"tensorboard: writing failed \(File too large\); free space"):
        try:
            with MetricsLog(tmp_path, ("tensorboard",), 0) as log:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
                for step in range(100):
                    log.write("train", step, **{f"figure {number}": 1.0 for number in range(100)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [thread for thread in threading.enumerate() if "Event" in type(thread).__name__]


@pytest.fixture
def config(whole_folder, sound_files, tmp_path, monkeypatch):
    """A run in which no stage begins."""
    monkeypatch.setattr(pipeline, "do_stage", lambda *_: pytest.fail("a stage has begun"))
    return make_config(whole_folder, sound_files, tmp_path)


def test_wandb_that_is_missing_is_told_before_training(config, monkeypatch):
    present = importlib.util.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "wandb" else present(name))
    with pytest.raises(UserError) as error:
        pipeline.run(config, ("data", "extract", "train"))
    assert str(error.value) == "train.log_to=wandb: needs the package wandb; run: pip install wandb"


def test_wandb_that_refuses_is_told_before_training(config, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")

    def refuse(**_):
        raise ValueError("No API key configured.")

    begin, wandb.init = wandb.init, refuse
    with pytest.raises(UserError) as error:
        pipeline.run(config, ("data", "extract", "train"))
    assert str(error.value) == (
        "train.log_to: wandb cannot begin (No API key configured.); run `wandb login`, set"
        " WANDB_MODE=offline, or leave wandb out."
    )
    wandb.init = begin
    config.train.learning_rate = 5e-3  # the try has left no run in the folder
    with pytest.raises(pytest.fail.Exception, match="a stage has begun"):
        pipeline.run(config, ("data", "extract", "train"))
    assert wandb.runs[0].finished


def test_the_stand_in_has_wandbs_own_signatures(wandb):
    """The real package comes with the extra `test`."""
    del sys.modules["wandb"]
    real = importlib.import_module("wandb")
    names = set(inspect.signature(wandb.init).parameters)
    assert names <= set(inspect.signature(real.init).parameters)
    for method in ("log", "define_metric", "finish"):
        ours, theirs = (inspect.signature(getattr(one, method)) for one in (WandbRun, real.Run))
        assert list(ours.parameters) == list(theirs.parameters)
