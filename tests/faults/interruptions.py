"""Signals at moments spread evenly over the stages of a run, and full disks; each run then goes on."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults.runs import STAGES, SmallRun, differences

FREE = (0, 4_096, 65_536, 262_144, 1_048_576, 4_194_304)  # bytes that a full disk has left
DISK = 700_000_000  # bytes; a run wants 500 MB free when it begins


def moments(number: int) -> list[tuple[str, float]]:
    """`number` moments, as many in each stage as possible: the stage and the share of its time."""
    counts = [number // len(STAGES) + (place < number % len(STAGES)) for place in range(len(STAGES))]
    return [
        (stage, (i + 0.5) / count) for stage, count in zip(STAGES, counts, strict=True) for i in range(count)
    ]


def interrupt(small: SmallRun, kind: signal.Signals, stage: str, share: float) -> dict:
    """A row of the table: what the signal did, and what the same command made afterwards."""
    run = small.folder / "interrupted"
    ended = small.interrupted(run, stage, kind, share)
    sound = ended.sound((run / ".done" / f"{stage}.json").exists())
    again = small.do(run, stage)
    return {
        "signal": kind.name,
        "stage": stage,
        "share": round(share, 2),
        "status": ended.status,
        "sound": sound and again.sound(True),
        "resumed": again.status,
        "differs": differences(run, small.after(stage), small.folder / "whole"),
        "seconds": round(ended.seconds + again.seconds, 1),
        "said": "" if sound and not again.status else (ended.said + again.said)[-2000:],
    }


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Yields a folder on a disk of its own in memory. Only the system's administrator can make one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path, free: int) -> Path:
    """Writes a file that leaves so many bytes of the disk free."""
    ballast, space = folder / "ballast", shutil.disk_usage(folder).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(space - free, 1))
    return ballast


def full_disk(small: SmallRun, free: int) -> dict:
    """A row of the table: a whole run on a disk that is full when it has begun."""
    filled = []

    def at(process: subprocess.Popen, since: float) -> None:
        if not filled:
            filled.append(fill(disk, free))

    with small_disk(small.folder / "disk") as disk:
        run = disk / "run"
        ended = small.do(run, ",".join(STAGES), at)
        for file in filled:
            file.unlink()
        again = small.do(run, ",".join(STAGES))
        return {
            "free": free,
            "status": ended.status,
            "sound": ended.sound(False) and again.sound(False),
            "resumed": again.status,
            "differs": differences(run, small.folder / "after", small.folder / "whole"),
            "said": ended.said.strip().splitlines()[-1][:200] if ended.said.strip() else "",
        }


def table(rows: list[dict]) -> str:
    """Rows as Markdown."""
    names = [name for name in rows[0] if name != "said" or any(row["said"] for row in rows)]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]).replace("\n", " ") for name in names) + " |" for row in rows]
    return "\n".join(lines)
