"""Locks between processes: who waits, who is refused, and a file system that has none."""

import errno
import fcntl
import subprocess
import sys
import threading
import time

import filelock
import pytest

from rrs_jax.files import file_lock

HOLDER = """
import sys, time
from pathlib import Path
from rrs_jax.files import file_lock
with file_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_refused_until_the_holder_is_gone(holder, tmp_path):
    with pytest.raises(filelock.Timeout), file_lock(tmp_path / "lock", seconds=0):
        pass
    holder.kill()
    holder.wait()
    with file_lock(tmp_path / "lock", seconds=0):
        pass


def test_a_waiting_process_goes_on_when_the_holder_is_killed(holder, tmp_path):
    threading.Timer(0.5, holder.kill).start()
    start = time.monotonic()
    with file_lock(tmp_path / "lock"):
        assert holder.wait() < 0 and time.monotonic() - start >= 0.4


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_work_is_done_all_the_same(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    done = []
    with file_lock(tmp_path / "lock", seconds=0), file_lock(tmp_path / "lock"):
        done.append(1)
    assert done and [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_fails_within_is_raised_and_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), file_lock(tmp_path / "lock"):
        _ = 1 / 0
    with file_lock(tmp_path / "lock", seconds=0):
        pass


def test_a_place_that_cannot_be_written_is_not_taken_for_one_without_locks(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), file_lock(tmp_path / "file" / "lock"):
        pass
