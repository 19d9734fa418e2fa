"""The commands `python -m rrs_jax...`: one style of arguments, and one exit status for a user's mistake."""

import importlib
import os
import subprocess
import sys

import pytest

COMMANDS = (
    "data.authors",
    "data.build",
    "data.distractors",
    "data.intelligibility",
    "data.pack",
    "data.show",
    "evaluate.compare",
    "evaluate.judges.sheet",
    "evaluate.measure",
    "evaluate.pool",
    "mini.measure",
    "mini.separability",
    "mini.train_bridge",
    "report.authors_states",
    "report.details",
    "report.page",
    "report.publish",
    "report.ranking",
    "report.table",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_refuses_an_unknown_flag(name, capsys):
    main = importlib.import_module(f"rrs_jax.{name}").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"python -m rrs_jax.{name} " in shown
    with pytest.raises(SystemExit) as ended:
        main(["--no_such_flag=3"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("data.build", ["--sets=mirror,basics", "--out=x"], "--sets: basics is none of basic, mirror, "),
        ("data.distractors", ["MANIFEST", "OUT", "--kinds=noise,hum"], "--kinds: hum is none of silence, "),
        ("data.pack", ["nowhere", "OUT"], "nowhere: holds no manifest.jsonl"),
        ("data.show", ["nowhere"], "nowhere: holds no manifest.jsonl"),
        ("report.table", ["nowhere"], "nowhere: "),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(name, arguments, sentence, capsys):
    assert importlib.import_module(f"rrs_jax.{name}").main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("data.build", ["--basic=0"], "argument --basic: is 0, give a whole number of 1 or more"),
        ("data.build", ["--basic=few"], "argument --basic: is 'few', give a whole number of 1 or more"),
        ("data.build", ["--split=all"], "argument --split: is 'all', give one of 330k_train, "),
        (
            "data.distractors",
            ["M", "O", "--speed=9"],
            "argument --speed: is 9.0, give a number from 0.25 to 4",
        ),
        ("data.intelligibility", ["--questions=0"], "argument --questions: is 0, give a whole number of 1"),
        ("mini.train_bridge", [], "the following arguments are required: --work"),
    ],
)
def test_a_wrong_value_is_told_with_what_to_give(name, arguments, complaint, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"rrs_jax.{name}").main(arguments)
    assert ended.value.code == 2 and complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", (*COMMANDS, "config"))
def test_every_command_explains_itself_on_a_terminal_that_is_not_utf_8(name):
    """Each in a process of its own, whose standard output is strict ASCII. None is loaded by its package, of
    which Python would warn, and then run it twice."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", f"rrs_jax.{name}", "--help"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and done.stdout


def test_a_reader_that_has_read_enough_ends_a_command_without_a_word():
    command = f"{sys.executable} -m rrs_jax.config | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "141\n" and done.stderr == ""
