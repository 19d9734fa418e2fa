"""All faults, with tables of what came of them; on two cores at most half an hour.

cd tests && python -m faults [--only=readers,files,signals,disks,steps] [--inputs=100000] [--signals=40]
"""

import argparse
import concurrent.futures
import functools
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faults import run_files
from faults.fuzz import fuzz
from faults.fuzz import table as fuzz_table
from faults.interruptions import FREE, full_disk, interrupt, moments, table
from faults.runs import SmallRun
from faults.steps import train_long

PARTS = ("readers", "files", "signals", "disks", "steps")
LAYERS = 40  # of a run that writes more than the largest of FREE
Done = tuple[str, bool]  # text of a part, and whether something in it is bad


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description="Faults made on purpose.")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts out of {', '.join(PARTS)}")
    parser.add_argument("--inputs", type=int, default=100_000, help="mutated inputs over all readers")
    parser.add_argument("--signals", type=int, default=40, help="of each kind")
    parser.add_argument("--steps", type=int, default=3000, help="of the long training")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    options = parser.parse_args()
    wanted, start, bad = options.only.split(","), time.monotonic(), False
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: there is no part {min(unknown)}")
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(_cores()) as pool:
        began = {part: pool.submit(work) for part, work in _alone(options).items() if part in wanted}
        rows = _rows_of_runs(Path(folder), wanted, options.signals, pool)
        for part in wanted:
            if part in began:
                text, is_bad = began[part].result()
            elif part == "steps":
                found = train_long(Path(folder) / "long", options.steps)
                text, is_bad = table(found), any(row["bad"] for row in found)
            else:
                text, is_bad = table(rows[part]), any(row["bad"] for row in rows[part])
            print(f"## {part}: {'BAD' if is_bad else 'good'}\n\n{text}\n", flush=True)
            bad |= is_bad
    print(f"{time.monotonic() - start:.0f} s on {_cores()} cores")
    return bad


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _alone(options: argparse.Namespace) -> dict[str, Callable[[], Done]]:
    """The parts that go on in processes of their own while the others' runs are started."""
    return {"files": _damage, "readers": functools.partial(_fuzz, options.inputs, options.seed)}


def _fuzz(inputs: int, seed: int) -> Done:
    outcomes = fuzz(inputs, seed=seed)
    return fuzz_table(outcomes), any(one.faults for one in outcomes.values())


def _damage() -> Done:
    ended = subprocess.run([sys.executable, run_files.__file__], capture_output=True, text=True)
    return (ended.stdout or ended.stderr[-3000:]).strip(), bool(ended.returncode)


def _rows_of_runs(
    folder: Path, wanted: list[str], signals: int, pool: concurrent.futures.Executor
) -> dict[str, list[dict]]:
    """The rows of the parts that interrupt a small run, side by side."""
    if not {"signals", "disks"} & set(wanted):
        return {}
    small, deep = SmallRun(folder / "small"), SmallRun(folder / "deep", layers=LAYERS)
    if "signals" in wanted:
        small.prepare()
    if "disks" in wanted:
        deep.prepare_whole()
    cases = itertools.product((signal.SIGKILL, signal.SIGTERM), moments(signals))
    jobs = {
        "signals": [functools.partial(interrupt, small, kind, *moment) for kind, moment in cases],
        "disks": [functools.partial(full_disk, deep, free) for free in FREE],
    }
    begun = {part: [pool.submit(job) for job in jobs[part]] for part in jobs if part in wanted}
    rows: dict[str, list[dict]] = {}
    for part, futures in begun.items():
        rows[part] = []
        for future in futures:
            rows[part].append(future.result())
            print(rows[part][-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
