"""Runs everything in examples/ on the mini with its real weights: `python tests/check_examples.py [--write]`.

Not collected by pytest: it needs the mini's weights and some minutes. The current folder is empty and gets
the runs. Cells run in this process, as a notebook would run them, without a notebook's packages. `--write`
keeps in the notebooks what the cells print, without this machine's seconds, and pictures without players.
"""

import ast
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_notebook(path: Path, write: bool = False) -> dict:
    """Runs the code cells one behind the other and returns their names and values."""
    notebook, names = json.loads(path.read_text(encoding="utf-8")), {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        outputs = list(run_cell("".join(cell["source"]), f"{path.name}:{number}", names))
        cell |= {"execution_count": number, "outputs": outputs}
    if write:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return names


def run_cell(source: str, place: str, names: dict) -> Iterator[dict]:
    """Runs a cell and yields its outputs: what it prints, and the value of its last line."""
    tree = ast.parse(source, place)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, place, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), place, "eval"), names)
    if text := printed.getvalue():
        print(text, end="", flush=True)
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith("seconds: ")]
        yield {"name": "stdout", "output_type": "stream", "text": lines}
    if value is not None:
        data = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_png_"):
            assert "<audio" in value._repr_html_()
            png = base64.b64encode(value._repr_png_()).decode()
            data = {"image/png": png, "text/plain": [f"{type(value).__name__}()"]}
        count = int(place.rpartition(":")[2])
        yield {"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"}


def run_script(name: str, *arguments: str) -> str:
    """Runs a script and returns what it prints; its progress goes to standard error."""
    began = time.monotonic()
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"{time.monotonic() - began:.0f} s: {name} {' '.join(arguments)}\n{printed}", flush=True)
    return printed


def write_few(folder: Path) -> str:
    """Writes four questions of each label of the folder's manifest to a file beside it, and returns it."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    by_label: dict[str, list[str]] = {}
    for line in lines:
        by_label.setdefault(json.loads(line)["label"], []).append(line)
    few = [line for members in by_label.values() for line in members[:4]]
    (folder / "few.jsonl").write_text("\n".join(few) + "\n", encoding="utf-8")
    return str(folder / "few.jsonl")


def main(write: bool) -> None:
    began = time.monotonic()
    heard = run_notebook(EXAMPLES / "hear_and_refuse.ipynb", write)
    harmful, before, after = heard["harmful"], heard["before"], heard["after"]
    assert before.sum() == 0 and after[harmful].sum() >= 4 > after[~harmful].sum(), (before, after)
    vector = heard["vector"]
    moved = (heard["now"] - heard["heard"]) @ vector / (vector @ vector)
    assert moved[harmful].mean() > 0.2 > 0 > moved[~harmful].mean(), moved
    heard.clear()  # its model has two gigabytes
    print(f"{time.monotonic() - began:.0f} s: the first notebook", flush=True)

    asked = run_notebook(EXAMPLES / "evaluate_your_prompts.ipynb", write)
    assert len(asked["prompts"]) == 200 and asked["after"]["modes"]["audio_text"]["queries"] == 4
    assert asked["before"]["modes"]["audio_text"]["asr"] >= asked["after"]["modes"]["audio_text"]["asr"]
    asked.clear()
    print(f"{time.monotonic() - began:.0f} s: both notebooks", flush=True)

    run, other = "runs/hear_and_refuse", "runs/other"
    asked_of, adapter = write_few(Path(run, "data", "eval")), f"{run}/export/adapter"
    assert f"adapter: {other}/export/adapter" in run_script("train_an_adapter", other)
    clip = str(next(Path(run, "data", "eval", "audio").glob("*benign.flac")))
    assert run_script("answer_a_clip", "mini", clip).strip()
    assert run_script("find_safety_vector", "mini", asked_of, "found.safetensors")
    text = run_script("evaluate_a_file", "mini", asked_of, "answers.jsonl", adapter)
    assert "harmful questions answered" in text and "borderline questions refused" in text
    text = run_script("compare_adapters", "mini", asked_of, f"{other}/export/adapter", adapter)
    assert text.count("% refused, difference") == 3
    print(f"{time.monotonic() - began:.0f} s: all examples")


if __name__ == "__main__":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("compiled").absolute()))
    main("--write" in sys.argv[1:])
