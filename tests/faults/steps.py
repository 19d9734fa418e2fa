"""A long training of a small model: what grows with its steps."""

import dataclasses
import os
import statistics
import time
from pathlib import Path

from faults.runs import SmallRun

QUESTIONS, BATCH = 800, 8
GROWTH = {"memory, MB": 0.05, "open files": 0.2, "threads": 0.2, "files": 0.2}  # allowed to the second half
EVERY = 0.2  # seconds between two looks


@dataclasses.dataclass(frozen=True)
class Look:
    """What a training takes at one moment: bytes of memory, open files and threads of its process, files and
    bytes of its run folder."""

    seconds: float
    steps: int
    memory: int
    open_files: int
    threads: int
    files: int
    size: int


def train_long(folder: Path, steps: int) -> list[dict]:
    """Trains for so many steps and returns ten rows of a table, each up to a tenth of the steps."""
    small = SmallRun(
        folder,
        repeated=QUESTIONS // 8,
        **{
            "train.batch_size": BATCH,
            "train.epochs": steps * BATCH // QUESTIONS,
            "train.learning_rate": 1e-4,
            "report.representation_epochs": (0,),
        },
    )
    run, looks = folder / "run", []
    if (ended := small.do(run, "data,extract")).status:
        raise RuntimeError(ended.said)

    def at(pid: int) -> None:
        if not looks or time.monotonic() - looks[-1].seconds > EVERY:
            try:
                looks.append(_look(pid, run))
            except (FileNotFoundError, ProcessLookupError):  # it has ended, or a file has
                pass

    if (ended := small.do(run, "train", at=at)).status:
        raise RuntimeError(ended.said)
    return _rows(looks, steps)


def _look(pid: int, run: Path) -> Look:
    metrics, process = run / "metrics.jsonl", Path("/proc") / str(pid)
    steps = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    memory = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = [file.stat().st_size for file in run.rglob("*") if file.is_file()]
    open_files, threads = (len(list((process / name).iterdir())) for name in ("fd", "task"))
    return Look(time.monotonic(), steps, memory, open_files, threads, len(files), sum(files))


def _rows(looks: list[Look], steps: int) -> list[dict]:
    rows = []
    training = [look for look in looks if look.steps]
    for part in range(10):
        inside = [look for look in training if 0 <= look.steps * 10 / steps - part < 1]
        first, last = inside[0], inside[-1]

        def middle(name: str, inside: list[Look] = inside) -> int:
            return statistics.median_low(getattr(look, name) for look in inside)

        rows.append(
            {
                "steps": f"{steps * part // 10} to {steps * (part + 1) // 10}",
                "ms a step": round(1000 * (last.seconds - first.seconds) / (last.steps - first.steps), 1),
                "memory, MB": round(middle("memory") / 1e6),
                "open files": middle("open_files"),
                "threads": middle("threads"),
                "files": middle("files"),
                "folder, MB": round(last.size / 1e6, 2),
            }
        )
    half, end = rows[4], rows[-1]
    grown = [name for name, more in GROWTH.items() if end[name] > half[name] * (1 + more)]
    return [row | {"bad": bool(grown) and row is end} for row in rows]
