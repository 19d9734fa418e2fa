"""The files in examples/ as they stand; `tests/check_examples.py` runs them on the mini, in `.ci/run`."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import check_examples

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK_BYTES = 30_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_small_and_was_run_in_order(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < NOTEBOOK_BYTES and notebook["nbformat"] == 4
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"} and outputs
    for cell in code:
        ast.parse("".join(cell["source"]))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_what_it_imports_exists(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert f"examples/{path.name} " in ast.get_docstring(ast.parse(text))
    assert callable(runpy.run_path(str(path), run_name="imported")["main"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_without_its_arguments_says_how_it_is_called(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=f"examples/{path.name} "):
        runpy.run_path(str(path), run_name="__main__")


def test_all_examples_are_run_and_listed():
    source = Path(check_examples.__file__).read_text(encoding="utf-8")
    run = set(re.findall(r'run_(?:script\("|notebook\(EXAMPLES / ")(\w+)', source))
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in (*NOTEBOOKS, *SCRIPTS):
        assert path.stem in run and f"]({path.name})" in listed, path.name
    assert len(NOTEBOOKS) == 2 and len(SCRIPTS) == 5


def test_cells_run_as_a_notebook_runs_them(tmp_path, capsys):
    """What is printed, the last line's value, names of the cells before, and a fault ends it."""
    sources = ["import math\nx = 2", "print('a')\nprint('b')\nmath.sqrt(x * 8)", "y = x\nif y:\n    y + 1"]
    cells = [{"cell_type": "code", "source": [source], "outputs": ["old"]} for source in sources]
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# A"]}, *cells]}))
    assert check_examples.run_notebook(path, write=True)["y"] == 2
    first, second, third = json.loads(path.read_text())["cells"][1:]
    assert first["outputs"] == third["outputs"] == [] and capsys.readouterr().out == "a\nb\n"
    printed, value = second["outputs"]
    assert printed == {"name": "stdout", "output_type": "stream", "text": ["a\n", "b\n"]}
    assert value["data"] == {"text/plain": ["4.0"]} and value["execution_count"] == 2
    cells[0]["source"] = ["raise KeyError('x')"]
    path.write_text(json.dumps({"cells": cells}))
    with pytest.raises(KeyError):
        check_examples.run_notebook(path)
