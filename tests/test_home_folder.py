"""`~` is the home folder in every path: fields, flags and arguments of commands, rows, functions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rrs_jax
from rrs_jax.config import FIELDS, default_config, flatten, resolve, validate
from rrs_jax.config.kinds import with_home
from rrs_jax.data import pack
from rrs_jax.errors import UserError
from rrs_jax.evaluate.question_sets import question_set_problem, read_question_sets
from rrs_jax.weights.load import resolve_folder

LAUNCH = Path(__file__).parent.parent / "launch.py"
PATHS = {name: field for name, field in FIELDS.items() if field.kind.with_home}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_the_fields_with_a_path():
    assert {*PATHS} >= {
        "run_dir", "model.path", "data.manifest", "data.basic_manifest", "data.parallel_manifest",
        "data.eval_manifest", "data.exclude", "evaluate.questions", "evaluate.judges", "evaluate.air_bench",
    }  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("written", ["~/a b", "~", "/x/~/y", "x~", "plain"])
def test_fields(home, name, written):
    config, word = (
        default_config(),
        {"evaluate.questions": "jsonl:", "evaluate.judges": "human:"}.get(name, ""),
    )
    value = (word + written, "other") if isinstance(FIELDS[name].default, tuple) else written
    config.update_from_flattened_dict({name: value})
    expected = written.replace("~", str(home)) if written.startswith("~") else written
    resolved = flatten(resolve(config))[name]
    assert resolved == ((word + expected, "other") if isinstance(value, tuple) else expected)
    assert flatten(resolve(resolve(config)))[name] == resolved


@pytest.mark.parametrize("name", ["run_dir", "data.manifest", "model.path"])
def test_a_user_that_there_is_not(name):
    config = default_config()
    config.update_from_flattened_dict({"model.path": "mini", name: "~no_such_user_here/x"})
    with pytest.raises(UserError, match=f"{name} is '~no_such_user_here/x' and there is no such home folder"):
        validate(resolve(config))


@pytest.mark.parametrize("name", ["run_dir", "data.manifest", "rrs.refusal_prompt", "evaluate.questions"])
def test_a_text_that_is_not_utf_8_is_a_sentence(name):
    config = default_config()
    value = ("jsonl:\udcff",) if name == "evaluate.questions" else "\udcff"
    config.update_from_flattened_dict({"model.path": "mini", name: value})
    with pytest.raises(UserError, match=f"{name} is .*dcff', which is not UTF-8") as refused:
        validate(resolve(config))
    str(refused.value).encode()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--out=~/x", "--out=HOME/x"),
        ("~/x", "HOME/x"),
        ("~", "HOME"),
        ("--config.run_dir=~/a=~/b", "--config.run_dir=HOME/a=~/b"),
        ("--text=see ~/x", "--text=see ~/x"),
        ("~other/x", "~other/x"),
        ("-o=~", "-o=HOME"),
        ("a~/b", "a~/b"),
    ],
)
def test_arguments(home, monkeypatch, word, expected):
    assert with_home([word]) == [expected.replace("HOME", str(home))]
    monkeypatch.setattr(sys, "argv", ["command", word])
    assert with_home(None) == with_home([word])


def test_commands_rows_sets_and_models(home, whole_folder, sound_files):
    shutil.copy(sound_files[0], home / "a.wav")
    row = {"id": "1", "label": "benign", "question": "Why?", "audio": "~/a.wav"}
    (home / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    assert pack.main(["~/manifest.jsonl", "~/packed"]) == 0 and (home / "packed" / "README.md").is_file()
    assert question_set_problem("jsonl:~/manifest.jsonl") is None
    assert read_question_sets(["jsonl:~/manifest.jsonl"])[0]["audio"] == str(home / "a.wav")
    shutil.copytree(whole_folder, home / "model")
    assert resolve_folder("~/model") == home / "model"
    assert rrs_jax.make_batch(rrs_jax.load_model("~/model"), ["~/a.wav"], "t") is not None


def test_a_run_with_its_config_file_and_folder_there(home, sound_files, tmp_path):
    rows = [
        {"id": str(n), "label": label, "question": f"Why {n}?", "audio": str(sound_files[n])}
        for n, label in enumerate(["harmful", "benign"])
    ]
    (home / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "my.py").write_text(
        "from rrs_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.run_dir, config.model.path = '~/run', '~/model'\n    return config\n"
    )
    options = [
        "--config=~/my.py",
        "--config.data.manifest=~/m.jsonl",
        "--config.data.eval_manifest=~/m.jsonl",
    ]
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, str(LAUNCH), *options, "--stages=data"],
        cwd=tmp_path / "here", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (home / "run" / ".done" / "data.json").is_file() and not list((tmp_path / "here").iterdir())
    assert json.loads((home / "run" / "config.json").read_text())["config"]["run_dir"] == str(home / "run")
