"""Runs the parts of one side, so that one that fails is told and the others go on."""

import argparse
import contextlib
import gc
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

from common import report


def each_part(side: str, functions: dict[str, Callable], arguments: argparse.Namespace, *inputs) -> None:
    for name, function in functions.items():
        if name in arguments.parts:
            with failure_told(part=name, side=side):
                function(*inputs, arguments)


@contextlib.contextmanager
def failure_told(**line: object) -> Iterator[None]:
    """A peer may lack a model, a card memory: whatever fails within it becomes a line, and what follows is of
    use."""
    try:
        yield
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        first = (str(error).splitlines() or [""])[0]
        report(**line, failed=f"{type(error).__name__}: {first[:200]}")
    gc.collect()  # what a piece of work held on the device, whose functions refer to one another


def interruptible() -> None:
    """The first SIGTERM interrupts the program; `timeout` sends one to the program and one to its whole
    group, of which the others must not disturb what is done about the first."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
