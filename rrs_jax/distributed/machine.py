"""A process's share of the machine, and the environment of processes that are about to start."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

MEMORY_SHARE = 0.92  # of a card, for one process; the rest is for its CUDA context
FURTHER_CONTEXT = 0.02  # of a card, for the context and the command buffers of each further process
MEMORY_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
SEEN_SECONDS = 70.0  # network file systems remember for up to a minute that a file did not exist


def cores() -> int:
    """Returns the number of CPU cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Returns the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Returns the bytes that a new program can have without swapping, the file cache counted as free; half of
    the machine's where the system (no Linux) does not tell."""
    told = Path("/proc/meminfo")
    if not told.is_file():
        return machine_memory() // 2
    values = dict(line.split(":", 1) for line in told.read_text().splitlines())
    left = [int(values["MemAvailable"].split()[0]) * 1024]
    group = Path("/sys/fs/cgroup")  # of a container, which may have less
    limit = group / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(cached["inactive_file"])
        left.append(int(most) - used)
    return max(0, min(left))


def memory_share(together: int = 1) -> dict[str, str]:
    """Returns the environment variable that gives a process its share of a card's memory.

    `together` processes share one card. Returns nothing where the user has set the variable. JAX takes 75 %
    by itself, which is 18 of 24 GiB: 7 B parameters in 16 bit and nothing else.
    """
    share = (MEMORY_SHARE - FURTHER_CONTEXT * (together - 1)) / together
    return {} if MEMORY_VARIABLE in os.environ else {MEMORY_VARIABLE: f"{share:.3f}"}


@contextlib.contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that are started meanwhile, and restores them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def on_network(folder: Path) -> bool:
    """Returns True where the folder lies on no disk of this host, or where that cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True
    real = str(folder.resolve())
    holding = [m for m in mounts if real == m[1] or real.startswith(m[1].rstrip("/") + "/")]
    kind = max(holding, key=lambda m: len(m[1]))[2] if holding else ""
    return kind not in ("ext4", "ext3", "xfs", "btrfs", "zfs", "tmpfs", "overlay")
