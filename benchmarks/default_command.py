"""`launch.py` as a user calls it, from weights on the disk to the report page, with a cold and a warm cache.

    python benchmarks/default_command.py                          # configs/qwen2_rrs.py at its released size
    python benchmarks/default_command.py --times=1 --out=lines.jsonl --seconds=400
    python benchmarks/default_command.py --model=tiny -- --config.data.pairs_per_category=1    # any computer

Random weights at the model's size lie in a folder of their own; every field is the config's default but the
folders, and what stands behind `--`. So the starter set is spoken, 560 questions are trained on, and both
models are asked the evaluation's. Answers of random weights end at the limit of tokens, which makes
evaluation the longest that it can be.

The first run finds no compiled programs, no speech and no weights in the system's memory; the second finds
what the first one left. Beside the seconds of each stage stands how much of it was compilation, and how much
of the card's time was idle (`nvidia-smi`, five times a second).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from common import SIZES, report
from folders import forget, working_folder, write_random_weights, write_small_files

ROOT = Path(__file__).parents[1]
SAMPLE = 0.2  # seconds between two looks at the card


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen2-audio", choices=SIZES)
    parser.add_argument("--config", default="configs/qwen2_rrs.py")
    parser.add_argument("--dtype", default="bfloat16", help="number type of the weights on the disk")
    parser.add_argument("--times", type=int, default=2, help="runs: the first with an empty cache")
    parser.add_argument("--seconds", type=float, default=600, help="a run that takes longer is stopped")
    parser.add_argument("--out", type=Path, help="file to which each line is appended")
    parser.add_argument("fields", nargs="*", help="further flags of launch.py, behind --")
    arguments = parser.parse_args()
    with working_folder("default") as place:
        base = place / "base"
        base.mkdir()
        write_small_files(base, SIZES[arguments.model])
        start = time.monotonic()
        weights = base / "model.safetensors"
        total = write_random_weights(weights, SIZES[arguments.model], arguments.dtype)
        print(f"wrote {total / 1e9:.1f} GB of random weights in {time.monotonic() - start:.0f} s", flush=True)
        failed = False
        for turn in range(arguments.times):
            if turn == 0:
                forget(weights)
            line = one_run(arguments, base, place / f"run{turn}", place / "cache", turn)
            report(part="default_command", **line)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            failed |= line["status"] != 0
    return int(failed)


def one_run(arguments: argparse.Namespace, base: Path, run: Path, cache: Path, turn: int) -> dict:
    """Returns what a run of the command took, stage by stage; its own output goes to standard error."""
    command = [sys.executable, "launch.py", f"--config={arguments.config}", f"--config.model.path={base}"]
    command += [f"--config.run_dir={run}", *arguments.fields]
    environment = os.environ | {"RRS_JAX_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would stand in for the empty cache
    start, ends = time.monotonic(), []
    with Card() as card:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        limit = threading.Timer(arguments.seconds, child.terminate)
        limit.start()
        for words in child.stdout:
            sys.stderr.write(words)
            if found := re.search(r"stage (\w+): done", words):
                ends.append((found[1], time.monotonic()))
        status = child.wait()
        limit.cancel()
    marks = {name: json.loads((run / ".done" / f"{name}.json").read_text()) for name, _ in ends}
    begins = [start, *(end for _, end in ends)]
    return {
        "model": arguments.model,
        "config": arguments.config,
        "fields": arguments.fields,
        "cache": "warm" if turn else "empty",
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "stage_seconds": {name: mark["seconds"] for name, mark in marks.items()},
        "compile_seconds": {name: mark["compiling_seconds"] for name, mark in marks.items()},
        **around(start, ends, marks),
        # A stage's share begins where the one before ended: the start of Python and of JAX go to the first.
        "idle_percent": {
            name: card.idle_percent(begin, end) for begin, (name, end) in zip(begins, ends, strict=False)
        },
        "idle_percent_of_all": card.idle_percent(start, time.monotonic()),
    }


def around(start: float, ends: list[tuple[str, float]], marks: dict[str, dict]) -> dict[str, float]:
    """Returns the seconds before the first stage and behind the last one, in which no stage is at work."""
    if not ends:
        return {}
    first, first_end = ends[0]
    return {
        "seconds_before": round(first_end - marks[first]["seconds"] - start, 1),
        "seconds_behind": round(time.monotonic() - ends[-1][1], 1),
    }


class Card:
    """Looks at how busy the first card is while the block runs; knows nothing where there is none."""

    def __enter__(self) -> "Card":
        self.seen: list[tuple[float, float]] = []  # time, and percent of the time that a kernel ran
        self.process = None
        if shutil.which("nvidia-smi"):
            asked = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
            self.process = subprocess.Popen(
                ["nvidia-smi", *asked, f"--loop-ms={int(1000 * SAMPLE)}"], stdout=subprocess.PIPE, text=True
            )
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.seen.append((time.monotonic(), float(line)))

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.terminate()

    def idle_percent(self, begin: float, end: float) -> float | None:
        """Returns the mean share of idle time between two moments, in percent."""
        busy = [percent for moment, percent in self.seen if begin <= moment < end]
        return round(100 - sum(busy) / len(busy), 1) if busy else None


if __name__ == "__main__":
    sys.exit(main())
