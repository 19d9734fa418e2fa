"""Signals: none is lost, whatever the process does when it comes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rrs_jax.errors import INTERRUPTED, exit_status, interruption, interruption_asked, stop_if_asked
from rrs_jax.files import read_jsonl
from rrs_jax.progress import Progress

ROOT = Path(__file__).parent.parent
START = """
import contextlib, gc, os, signal, sys, time, weakref
from rrs_jax.errors import exit_status
from rrs_jax.progress import Progress

def signal_itself(*_):
    os.kill(os.getpid(), signal.SIGTERM)"""


def started(body: str, *arguments: str) -> subprocess.Popen:
    """A process that prints READY and does `body` under `exit_status`."""
    program = f"{START}\nwith exit_status() as status:\n    print('READY', flush=True)\n"
    program += textwrap.indent(textwrap.dedent(body), "    ") + "\nsys.exit(status.code)"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


LOOP = """
with Progress(10**6, "counting") as progress:
    for _ in range(10**6):
        time.sleep(0.01)
        progress.update()
"""
SWALLOWED = [
    # JAX collects garbage in such a function, and an exception out of it is printed and dropped.
    "gc.callbacks.append(signal_itself)\ngc.collect()\ngc.callbacks.clear()",
    "class Dropped:\n    __del__ = signal_itself\nDropped()",
    "class Referred: pass\nit = Referred()\nr = weakref.ref(it, signal_itself)\ndel it",
    "with contextlib.suppress(BaseException):\n    signal_itself()\n    time.sleep(0.2)",
]


@pytest.mark.parametrize("swallowing", SWALLOWED)
@pytest.mark.parametrize("then", [LOOP, "while True:\n    time.sleep(100)"], ids=["loop", "sleep"])
def test_a_signal_is_not_lost_where_exceptions_are(swallowing, then):
    process = started(f"{swallowing}\n{textwrap.dedent(then)}")
    start = time.monotonic()
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1 and error.rstrip().endswith(INTERRUPTED), error
    assert "Traceback" not in error
    assert time.monotonic() - start < 8


SLOW = [
    "gc.callbacks.append(lambda *_: time.sleep(4))\ngc.collect()\ngc.callbacks.clear()",
    "class Dropped:\n    def __del__(self): time.sleep(4)\nDropped()",
]


@pytest.mark.parametrize("swallowing", SLOW)
def test_an_interruption_that_python_cannot_raise_is_not_printed(swallowing):
    """As in JAX's own part of a garbage collection, where the thread's signal may come."""
    process = started(f"signal_itself()\n{swallowing}\ntime.sleep(100)")
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1 and error == f"{INTERRUPTED}\n"


def test_an_interruption_swallowed_later_comes_again():
    process = started("""
        signal_itself()
        for _ in range(2):
            try:
                time.sleep(100)
            except KeyboardInterrupt:
                pass
        time.sleep(100)
    """)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1 and error == f"{INTERRUPTED}\n"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_cleaning_up_is_not_interrupted_a_second_time(kind):
    process = started("""
        try:
            time.sleep(100)
        finally:
            time.sleep(3)
            print("CLEAN", flush=True)
    """)
    assert process.stdout.readline() == "READY\n"
    process.send_signal(kind)
    process.send_signal(kind)  # as `timeout` does, to the program and to its group
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (1, "CLEAN\n", f"{INTERRUPTED}\n")


def test_a_process_that_does_not_react_saves_and_ends_within_ten_seconds(tmp_path):
    """Its main thread computes outside of Python, as a compilation does."""
    process = started(
        """
        import hashlib
        from pathlib import Path
        from rrs_jax.evaluate.responses import AppendedRows
        with AppendedRows(Path(sys.argv[1])) as finished:
            finished.add([{"id": "whole"}])
            print("BUSY", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        """,
        str(tmp_path / "rows.jsonl"),
    )
    assert [process.stdout.readline() for _ in range(2)] == ["READY\n", "BUSY\n"]
    time.sleep(1)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1 and error == f"{INTERRUPTED}\n"
    assert time.monotonic() - start < 15
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"id": "whole"}]


def test_a_second_signal_ends_at_once():
    process = started("""
        try:
            time.sleep(100)
        finally:
            time.sleep(100)
    """)
    assert process.stdout.readline() == "READY\n"
    process.send_signal(signal.SIGINT)
    time.sleep(interruption.TWICE_SECONDS + 0.3)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (1, f"{INTERRUPTED}\n") and time.monotonic() - start < 1


def test_loops_come_to_an_end_by_themselves(capsys):
    done = []
    with exit_status() as told, Progress(5, "counting") as progress:
        for number in range(5):
            if number == 2:
                signal.raise_signal(signal.SIGTERM)
            done.append(number)
            progress.update()
    assert done == [0, 1, 2] and told.code == 1
    assert capsys.readouterr().err.endswith(f"{INTERRUPTED}\n")
    stop_if_asked()  # the wish has gone with the command
    assert not interruption_asked()
