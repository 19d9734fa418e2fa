"""The command line: overrides, mistakes, stages, exit status."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from rrs_jax.config import FIELDS, command_line, given_fields, resolve, validate
from rrs_jax.config.stages import STAGES, parse_stages
from rrs_jax.errors import INTERRUPTED, UserError, exit_status, stop_if_asked

ROOT = Path(__file__).parent.parent
MINI = "--config=configs/mini_rrs.py"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def read(*arguments: str):
    """Returns what launch.py reads from these arguments."""
    values = flags.FlagValues()
    command_line.define_flags(values, ["launch.py", *arguments])
    command_line.parse(["launch.py", *arguments], values)
    config, stages = command_line.read(values)
    validate(config)
    return config, stages, values


def mistake(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        read(*arguments)
    message = str(error.value)
    assert "\n" not in message and "Traceback" not in message
    return message


def test_overrides_reach_the_config():
    config, stages, values = read(
        MINI,
        "--config.train.epochs=7",
        "--config.train.learning_rate=1",
        "--config.rrs.top_m=12.5",
        "--config.lora.targets=q_proj,v_proj",
        "--config.lora.layers=all",
        "--noconfig.generate.greedy",
        "--config.train.clip_norm=1.5",
        "--config.data.borderline=None",
        "--config.seed",
        "3",
        "--config.run_dir=5",
        "--stages=report,data",
        "--dry_run",
    )
    assert (config.train.epochs, config.train.learning_rate, config.rrs.top_m) == (7, 1.0, 12.5)
    assert (config.lora.targets, config.lora.layers) == (("q_proj", "v_proj"), "all")
    assert (config.generate.greedy, config.train.clip_norm, config.data.borderline) == (False, 1.5, None)
    assert (config.seed, config.run_dir) == (3, "5")
    assert stages == ("data", "report") and values.dry_run


def test_the_text_of_every_default_reads_back():
    def written(value):
        return ",".join(value) if isinstance(value, tuple) else str(value)

    arguments = [
        f"--config.{name}={written(field.default)}" for name, field in FIELDS.items() if field.default != ""
    ]
    config, _, _ = read(MINI, *arguments)
    for name, field in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        value = (config[group] if group else config)[leaf]
        assert value == field.default or name == "model.path", name


@pytest.mark.parametrize(
    "arguments, epochs", [([], 20), (["--config.train.epochs=10"], 10), (["--config.train.epochs", "7"], 7)]
)
def test_an_override_wins_over_the_preset_also_where_it_is_the_default(arguments, epochs):
    config, _, _ = read(MINI + ":full", "--config.strategy=rrs_plus", "--config.data.everyday=0", *arguments)
    resolved = resolve(config)
    assert (resolved.train.epochs, resolved.data.everyday) == (epochs, 0)
    assert (resolved.data.contrast, resolved.train.learning_rate) == (None, 2e-4)


def test_a_config_files_value_wins_over_the_preset(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from rrs_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.model.path, config.strategy, config.train.epochs = 'mini', 'rrs_plus', 10\n"
        "    return config\n"
    )
    config, _, _ = read(f"--config={path}", "--config.seed=3")
    assert given_fields(config) == {"model.path", "strategy", "train.epochs", "seed"}
    assert (resolve(config).train.epochs, resolve(config).train.average) == (10, 0.5)


def test_a_variant_is_chosen_behind_the_colon():
    config, stages, _ = read(MINI + ":full", "--config.strategy=rrs")
    assert config.train.epochs == 10 and config.data.pairs_per_category is None
    assert stages == tuple(STAGES)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([MINI, "--config.trian.epochs=3"], "trian.epochs is no field, the nearest is train.epochs"),
        ([MINI, "--config.epochs=3"], "epochs is no field, the nearest is train.epochs"),
        ([MINI, "--noconfig.generate.gredy"], "generate.gredy is no field, the nearest is generate.greedy"),
        ([MINI, "--config.train=3"], "train is a group, give one of its fields such as train.epochs"),
        ([MINI, "--config.train.epochs=three"], "train.epochs is 'three', give a whole number of 1 or more"),
        ([MINI, "--config.train.epochs=2.5"], "train.epochs is '2.5'"),
        ([MINI, "--config.train.epochs", "x"], "train.epochs is 'x'"),
        ([MINI, "--config.train.epochs"], "train.epochs is ''"),
        ([MINI, "--config.train.learning_rate=nan"], "train.learning_rate is nan"),
        ([MINI, "--config.generate.greedy=maybe"], "generate.greedy is 'maybe', give true or false"),
        (
            [MINI, "--config.rrs.top_m=0"],
            "rrs.top_m is 0.0, give a number above 0 and at most 100, or positive",
        ),
        ([MINI, "--config.lora.targets=up"], "lora.targets is ('up',)"),
        ([MINI + ":smok"], "'smok' is no variant of this file; it has full, authors, balanced, smoke"),
        ([MINI, "--stages=data,evalute"], "--stages: evalute is no stage, the nearest is evaluate"),
        ([MINI, "--stages="], "--stages: is empty"),
        ([MINI, "--dryrun"], "dry_run"),
        ([MINI, "data"], "'data' is no flag"),
        (["--config.seed=1", MINI], "before a value for --config"),
        (["--config=configs/mini.py"], "'configs/mini.py' is no file; the package has mini_rrs, omni_rrs"),
        (["--config"], "'' is no file"),
        ([], "--config: give a config, for example --config=mini_rrs"),
    ],
)
def test_mistake_is_one_sentence(arguments, words):
    assert words in mistake(*arguments)


def test_all_wrong_overrides_are_named_at_once():
    message = mistake(MINI, "--config.trian.epochs=3", "--config.lora.rank=0", "--config.model.dtype=fp8")
    assert all(words in message for words in ("trian.epochs", "lora.rank is 0", "model.dtype is 'fp8'"))


@pytest.mark.parametrize(
    "body, words",
    [
        ("config.train.epochs = '3'", "'epochs'"),
        ("config.train.epoch = 3", '"epochs"'),
        ("import nowhere", "No module named 'nowhere'"),
        ("config.train.epochs =", "invalid syntax"),
        ("raise ValueError('broken')", "broken"),
    ],
)
def test_a_broken_config_file_is_named(tmp_path, body, words):
    path = tmp_path / "broken.py"
    path.write_text(
        "from rrs_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        f"    {body}\n    return config\n"
    )
    message = mistake(f"--config={path}")
    assert str(path) in message and words in message


def test_vanilla_trains_nothing():
    assert parse_stages(",".join(STAGES), "vanilla") == ("data", "evaluate", "report")


@pytest.mark.parametrize(
    "error, status, sentence",
    [
        (UserError("train.epochs: is 0."), 2, "train.epochs: is 0.\n"),
        (KeyboardInterrupt(), 1, "interrupted; the same command resumes\n"),
        (OSError(errno.ENOSPC, "No space left on device", "RUN/x"), 2, "RUN/x: no space is left; free some"),
        (
            ValueError("RESOURCE_EXHAUSTED: pwrite: No space left on device"),
            2,
            "the run folder's disk: no space",
        ),
    ],
)
def test_exit_status(error, status, sentence, capsys):
    with exit_status() as told:
        raise error
    assert told.code == status
    assert capsys.readouterr().err.startswith(sentence)


def test_termination_is_an_interruption(capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with exit_status() as told:
        signal.raise_signal(signal.SIGTERM)
        stop_if_asked()
    assert told.code == 1 and "resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_signal_behind_the_last_work_is_no_interruption(capsys):
    with exit_status() as told:
        signal.raise_signal(signal.SIGTERM)
    assert told.code == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize(("stage", "status"), [("evaluate", 1), ("report", 0)])
def test_a_signal_in_the_last_stage_comes_too_late(stage, status):
    """Stages that look for no signal while they work: one that is left is not begun."""
    script = f"""
import signal, types
from rrs_jax.command import launch
from rrs_jax.run import pipeline

def do_stage(context, work):
    print("WORKS", flush=True)
    if work is pipeline.STAGE_WORK["{stage}"]:
        signal.raise_signal(signal.SIGTERM)
    return {{}}

pipeline.do_stage, pipeline.stage_done = do_stage, lambda *_: False
pipeline.open_run = lambda *_: types.SimpleNamespace(folder=None)
pipeline.check_needs = pipeline.mark_done = pipeline.print_summary = lambda *_: None
launch.start(["{MINI}", "--stages=evaluate,report"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.count("WORKS") == (1 if stage == "evaluate" else 2)
    assert (INTERRUPTED in done.stderr) == bool(status)


def test_our_own_failure_keeps_its_traceback(capsys):
    with exit_status() as told:
        _ = 1 / 0
    error = capsys.readouterr().err
    assert (
        told.code == 1
        and "test_launch.py" in error
        and error.endswith("ZeroDivisionError: division by zero\n")
    )


def test_the_libraries_are_quiet_unless_the_user_asks():
    """absl raises a verbosity that counts as not set to INFO behind the parsing."""
    for arguments, level in (([], -1), (["--verbosity=1"], 1)):
        script = f"""
from absl import app, flags
from rrs_jax.command import launch
launch.main = lambda _: print(flags.FLAGS.verbosity)
launch.start(["{MINI}", *{arguments}])
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.stdout == f"{level}\n", done.stderr


def test_another_broken_pipe_than_the_outputs_is_a_failure(capsys):
    with exit_status() as told:
        raise BrokenPipeError("a worker is gone")
    assert told.code == 1 and "a worker is gone" in capsys.readouterr().err


def test_what_is_done_has_status_0():
    with exit_status() as told:
        pass
    assert told.code == 0


def test_launch_calls_the_pipeline_with_config_and_stages(monkeypatch):
    called = []
    pipeline = types.SimpleNamespace(run=lambda config, stages: called.append((config, stages)))
    monkeypatch.setattr(importlib.import_module("rrs_jax.run"), "pipeline", pipeline, raising=False)
    arguments = ["launch.py", MINI, "--config.strategy=rrs_plus", "--config.seed=4", "--stages=data"]
    monkeypatch.setattr(sys, "argv", arguments)
    launch = importlib.import_module("launch")
    command_line.parse(arguments)
    launch.main([])
    ((config, stages),) = called
    assert (config.seed, config.train.audio_share, stages) == (4, 0.25, ("data",))


@pytest.mark.parametrize(
    "given, judges, share",
    [(None, "phrases", "0.920"), ("0.5", "phrases", "0.5"), (None, "phrases,llama_guard:FOLDER", None)],
)
def test_a_run_takes_the_card_but_what_torch_or_the_user_wants(monkeypatch, given, judges, share):
    monkeypatch.setattr(
        importlib.import_module("rrs_jax.run"),
        "pipeline",
        types.SimpleNamespace(run=lambda *_: None),
        raising=False,
    )
    monkeypatch.setattr(os, "environ", {} if given is None else {"XLA_PYTHON_CLIENT_MEM_FRACTION": given})
    arguments = ["launch.py", MINI, f"--config.evaluate.judges={judges}"]
    monkeypatch.setattr(sys, "argv", arguments)
    launch = importlib.import_module("launch")
    with flagsaver.flagsaver():
        command_line.parse(arguments)
        launch.main([])
    assert os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") == share


def test_a_sweep_index_needs_a_sweep(monkeypatch):
    arguments = ["launch.py", MINI, "--sweep_index=1"]
    monkeypatch.setattr(sys, "argv", arguments)
    launch = importlib.import_module("launch")
    with flagsaver.flagsaver():
        command_line.parse(arguments)
        with pytest.raises(UserError, match="--sweep_index: has no meaning without --sweep"):
            launch.main([])


def test_a_sweep_is_listed_without_running(monkeypatch, capsys, tmp_path):
    arguments = [
        "launch.py",
        MINI,
        "--sweep=configs/sweeps/paper.py",
        "--dry_run",
        f"--config.run_dir={tmp_path}",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    launch = importlib.import_module("launch")
    with flagsaver.flagsaver():
        command_line.parse(arguments)
        launch.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "0",
        "vanilla",
        "data",
        "to",
        "do,",
        "evaluate",
        "to",
        "do,",
        "report",
        "to",
        "do",
    ]
    assert lines[4].startswith("  4  sft_deep") and not list(tmp_path.iterdir())


# What takes longer to import than help or a sentence about a mistake may.
SLOW = ("jax", "jaxlib", "flax", "optax", "orbax", "torch", "transformers", "scipy", "librosa", "sklearn")


def without_slow_imports(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """A whole process, in which an import of one of `SLOW` is an error."""
    for name in SLOW:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    env = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PATH": ""}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize(
    "words, status, told",
    [
        (("launch.py", "--help"), 1, "--dry_run"),  # absl ends help with 1
        (("-m", "rrs_jax.config"), 0, "generate.batch_size"),
        (("-c", "from rrs_jax.command.words import main; main(['config'])"), 0, "generate.batch_size"),
        (("-c", "import rrs_jax; print(rrs_jax.__version__)"), 0, "0."),
    ],
)
def test_help_and_fields_are_printed_without_slow_imports(tmp_path, words, status, told):
    ended = without_slow_imports(tmp_path, *words)
    assert ended.returncode == status and told in ended.stdout and not ended.stderr


def test_program_ends_with_2_and_one_line_before_jax_is_imported(tmp_path):
    words = "launch.py", MINI, "--config.train.epochs=0", "--config.trian.epochs=3"
    ended = without_slow_imports(tmp_path, *words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        ended.stderr
        == "config: train.epochs is 0, give a whole number of 1 or more; trian.epochs is no field, the"
        " nearest is train.epochs.\n"
    )
