"""The command `rrs-jax`: its words, configs found in the package, runs that exist."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rrs_jax.command import words
from rrs_jax.config import FIELDS, default_config, flatten
from rrs_jax.config.command_line import config_path, with_config_file
from rrs_jax.config.shipped import config_file, shipped
from rrs_jax.errors import UserError
from rrs_jax.files import read_json
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.recorded_config import recorded_config

ROOT = Path(__file__).parent.parent


def rrs_jax(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The command as a process of its own, as its installed script starts it."""
    script = "import sys; from rrs_jax.command.words import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, **options
    )


def test_the_command_says_what_it_can_do(capsys):
    assert words.main([]) == 2 and words.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {word} " in shown for word in ("run", "evaluate", "export", "report", "data", "config"))
    assert "mini_rrs, omni_rrs, qwen2_rrs" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train"], "rrs-jax: 'train' is no word of this command; there are run, evaluate, export, report, "),
        (["data"], "rrs-jax data: give one of authors, build, "),
        (["data", "built"], "rrs-jax data: give one of authors, build, "),
        (["report", "nowhere"], "nowhere/config.json: cannot be read"),
        (["data", "show", "nowhere"], "nowhere: holds no manifest.jsonl"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, sentence, capsys):
    assert words.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence) and error.count("\n") == 1


def test_config_lists_every_field(capsys):
    assert words.main(["config"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--config.{name}=" in shown for name in FIELDS)


def test_run_finds_its_config_in_the_package_from_any_folder(tmp_path):
    """In processes in which an import of JAX is an error."""
    (tmp_path / "jax.py").write_text("raise RuntimeError('JAX was imported')\n")
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}}
    for config in ("mini_rrs:smoke", "configs/mini_rrs.py:smoke"):
        done = rrs_jax("run", f"--config={config}", "--config.train.epochs=0", **options)
        assert done.returncode == 2
        assert done.stderr == "config: train.epochs is 0, give a whole number of 1 or more.\n"
    done = rrs_jax("run", "--help", **options)
    assert "rrs-jax run --config=mini_rrs" in done.stdout and "--stages" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("word", "given", "flags"),
    [
        ("run", ["--config=mini_rrs"], ["--config=mini_rrs"]),
        ("evaluate", ["RUN", "--x=3"], ["--config=resume:RUN", "--x=3", "--stages=evaluate,report"]),
        ("export", ["RUN"], ["--config=resume:RUN", "--stages=export"]),
        ("export", ["--config=mini_rrs"], ["--config=mini_rrs", "--stages=export"]),
    ],
)
def test_the_words_of_a_run_are_stages_of_launch(word, given, flags, monkeypatch):
    started = []
    launch = types.SimpleNamespace(start=lambda arguments: started.append(arguments) or sys.exit(0))
    monkeypatch.setitem(sys.modules, "rrs_jax.command.launch", launch)
    with pytest.raises(SystemExit):
        words.main([word, *given])
    assert started == [flags]


def test_a_file_wins_over_a_shipped_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        with_config_file(["p", "--config", "mini_rrs:full", "--x"])[2]
        == f"{shipped('configs')}/mini_rrs.py:full"
    )
    assert config_path(with_config_file(["p", "--config=mini_rrs"])) == str(
        shipped("configs") / "mini_rrs.py"
    )
    Path("mini_rrs").write_text("")
    assert with_config_file(["p", "--config=mini_rrs:full"]) == ["p", "--config=mini_rrs:full"]
    assert with_config_file(["p", "--config"]) == ["p", "--config"]
    assert with_config_file(["p", "--config=elsewhere/mini_rrs.py"])[1] == "--config=elsewhere/mini_rrs.py"


def test_every_shipped_config_and_sweep_has_a_name():
    for folder in ("configs", "configs/sweeps"):
        files = sorted((ROOT / folder).glob("*.py"))
        assert files and all(config_file(file.stem, folder) == file for file in files)


def test_a_run_that_was_moved_goes_on_with_its_recorded_config(tmp_path):
    config = default_config()
    config.model.path, config.run_dir, config.lora.targets = (
        "mini",
        str(tmp_path / "run"),
        ("q_proj", "v_proj"),
    )
    config.rrs.top_m, config.report.representation_epochs = 25, (0, 2)
    with RunFolder(config.run_dir, config).locked():
        pass
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    record = read_json(moved / "config.json")
    record["config"]["evaluate"]["split"] = "all"  # a field that is gone
    del record["config"]["train"]["average"]  # one that is new
    (moved / "config.json").write_text(json.dumps(record))
    assert flatten(recorded_config(moved)) == flatten(config) | {"run_dir": str(moved)}
    with RunFolder(moved, recorded_config(moved)).locked():
        pass


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_that_is_no_run_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no run folder, which has a config.json"):
        recorded_config(folder)
