"""Two trees of this program on one device: seconds of a training step, of extraction and generation in each.

    python benchmarks/before_after.py OLD_TREE . --out=before_after.jsonl
    python benchmarks/before_after.py OLD_TREE . --model=tiny --new_tokens=8 --queries=2      # a CPU

Each tree runs its own `benchmarks/side_by_side.py`, our side alone, in a process of its own, so that names
may differ between the trees. They take turns: old, new, new, old, ..., so that a drift of the clock touches
both. A tree's compiled programs are kept for its later turns in a folder of its own; what is timed is
compiled before. No turn begins that would end behind `--seconds`.

The last lines are medians over a tree's turns, their spread, and new divided by old: below 1 is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("step", "extract", "generate")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--model", default="qwen2-audio")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--turns", type=int, default=3, help="of each tree at most")
    parser.add_argument("--seconds", type=float, default=280, help="in which all has to end")
    parser.add_argument("--queries", type=int, default=128, help="of generate, five answers to each")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--cache", type=Path, help="folder of compiled programs; a temporary one by default")
    parser.add_argument("--out", type=Path, help="file to which all lines are appended")
    options = parser.parse_args()
    trees = {"old": options.old.resolve(), "new": options.new.resolve()}
    with tempfile.TemporaryDirectory(prefix="before_after_") as place:
        lines = take_turns(trees, options.cache or Path(place), options)
    print(table(lines))
    counted = {(line["tree"], line["part"]) for line in lines if "seconds" in line}
    missing = [f"{tree}: {part}" for tree in trees for part in options.parts.split(",")
               if (tree, part) not in counted]  # fmt: skip
    sys.exit(f"not measured: {', '.join(missing)}" if missing else 0)


def take_turns(trees: dict[str, Path], cache: Path, options: argparse.Namespace) -> list[dict]:
    """Returns the lines of all turns, each with its tree and turn."""
    start, longest, lines = time.monotonic(), 0.0, []
    order = [("old", "new") if turn % 2 == 0 else ("new", "old") for turn in range(options.turns)]
    for turn, pair in enumerate(order):
        if turn and time.monotonic() - start + 2 * longest > options.seconds:
            break
        for name in pair:
            began = time.monotonic()
            lines += [
                line | {"tree": name, "turn": turn} for line in run_tree(trees[name], cache / name, options)
            ]
            longest = time.monotonic() - began  # the later turns find their programs compiled
            keep({"tree": name, "turn": turn, "turn_seconds": round(longest, 1)}, options.out)
    for line in lines:
        keep(line, options.out, shown=False)
    return lines


def run_tree(tree: Path, cache: Path, options: argparse.Namespace) -> list[dict]:
    """Returns the lines that a tree's own benchmark prints."""
    path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "PYTHONPATH": path,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "benchmarks/side_by_side.py", "--sides=ours", "--rounds=1", "--remat=dots"]
    command += [f"--{name}={getattr(options, name)}" for name in ("model", "parts", "queries", "new_tokens")]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in found:
        if "failed" in line:
            print(json.dumps(line), flush=True)
    return [line for line in found if "seconds" in line and "detail" not in line and "failed" not in line]


def keep(line: dict, out: Path | None, shown: bool = True) -> None:
    if shown:
        print(json.dumps(line), flush=True)
    if out:
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def table(lines: list[dict]) -> str:
    """Returns Markdown: for each part the trees' medians in milliseconds, their spread, and the ratio."""
    rows = [
        "| part | old, ms | new, ms | new / old | spread old, new |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for part in dict.fromkeys(line["part"] for line in lines):
        times = {
            tree: [1000 * one["seconds"] for one in lines if (one["tree"], one["part"]) == (tree, part)]
            for tree in ("old", "new")
        }
        if not all(times.values()):
            continue
        old, new = (statistics.median(times[tree]) for tree in ("old", "new"))
        spread = ", ".join(f"{(max(times[t]) - min(times[t])) / min(times[t]):.2%}" for t in ("old", "new"))
        rows.append(f"| {part} | {old:.2f} | {new:.2f} | {new / old:.4f} | {spread} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
