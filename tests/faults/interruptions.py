"""Signals at moments spread evenly over the stages of a run, and full disks; each run then goes on."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults.runs import STAGES, SmallRun, differences
from rrs_jax.errors import INTERRUPTED

FREE = (0, 4_096, 65_536, 262_144, 1_048_576, 4_194_304)  # bytes that a full disk has left
DISK = 700_000_000  # bytes; a run wants 500 MB free when it begins


def moments(number: int) -> list[tuple[str, float, str]]:
    """`number` moments, as many in each stage as possible: the stage, and a share of its marks or, by turns,
    of its time."""
    counts = [number // len(STAGES) + (place < number % len(STAGES)) for place in range(len(STAGES))]
    return [
        (stage, (i + 0.5) / count, ("marks", "time")[i % 2])
        for stage, count in zip(STAGES, counts, strict=True)
        for i in range(count)
    ]


def interrupt(small: SmallRun, kind: signal.Signals, stage: str, share: float, by: str) -> dict:
    """A row of the table: what the signal did, and what the same command made afterwards."""
    run = small.folder / f"{kind.name}-{stage}-{share:.2f}"
    shutil.copytree(small.before(stage), run)
    when, mark = small.when(kind, stage, share, by)
    ended = small.do(run, stage, when)
    undone = not (run / ".done" / f"{stage}.json").exists()
    if kind == signal.SIGKILL:
        interrupted = ended.status == -kind
    else:
        interrupted = ended.told and ended.status == 1 and ended.said.rstrip().endswith(INTERRUPTED)
    again = small.do(run, stage)
    row = {
        "signal": kind.name,
        "stage": stage,
        "at": f"{share:.2f} of {by}",
        "behind": mark,
        "status": ended.status,
        "seconds": None if ended.after is None else round(ended.after, 1),
        "interrupted": interrupted and undone,
        "resumed": again.status,
        "differs": differences(run, small.after(stage), small.folder / "whole"),
    }
    row["bad"] = not row["interrupted"] or bool(again.status or row["differs"]) or "Traceback" in again.said
    row["said"] = (ended.said + again.said)[-2000:] if row["bad"] else ""
    shutil.rmtree(run)
    return row


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
    """A row of the table: a whole run on a disk that is full when its data are there, what the same command
    does on the full disk, and what it does when there is room again.

    small: whose undisturbed run writes more than `free` bytes behind its first stage.
    """
    ballast: list[Path] = []
    stages, whole = ",".join(STAGES), small.folder / "whole"

    def at(_: int) -> None:
        if not ballast and (run / ".done" / "data.json").exists():
            ballast.append(fill(disk, free))

    with small_disk(small.folder / f"disk-{free}") as disk:
        run = disk / "run"
        ended = small.do(run, stages, at=at)
        left = leftovers(run)
        refused = small.do(run, stages)
        left += leftovers(run)
        ballast[0].unlink()
        again = small.do(run, stages)
        row = {
            "free": free,
            "status": ended.status,
            "on the full disk": refused.status,
            "left": left + leftovers(run),
            "resumed": again.status,
            "differs": differences(run, whole, whole),
            "said": ended.said.strip().splitlines()[-1][:200] if ended.said.strip() else "",
        }
        is_told = all(one.told for one in (ended, refused, again)) and (ended.status, refused.status) == (
            2,
            2,
        )
        return row | {"bad": not is_told or bool(row["left"] or again.status or row["differs"])}


def leftovers(run: Path) -> list[str]:
    """Files under temporary names, which a command that has not been killed takes with it."""
    return [file.name for pattern in (".probe-*", ".seen-by-all-*", ".*.tmp") for file in run.rglob(pattern)]


def table(rows: list[dict]) -> str:
    """Rows as Markdown."""
    names = [name for name in rows[0] if name != "said" or any(row["said"] for row in rows)]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]).replace("\n", " ") for name in names) + " |" for row in rows]
    return "\n".join(lines)
