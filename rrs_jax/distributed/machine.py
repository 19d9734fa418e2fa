"""A process's share of the machine, and the environment of processes that are about to start."""

import contextlib
import os
from collections.abc import Iterator, Mapping

MEMORY_SHARE = 0.92  # of a card, for one process; the rest is for its CUDA context
FURTHER_CONTEXT = 0.02  # of a card, for the context and the command buffers of each further process
MEMORY_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def cores() -> int:
    """Returns the number of CPU cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
