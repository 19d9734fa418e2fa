"""Small files: locks between processes, and sums by which damage is found."""

import errno
import fcntl
import shutil
import subprocess
import sys
import threading
import time

import filelock
import pytest

from rrs_jax.errors import Damaged, UserError
from rrs_jax.files import (
    append_jsonl,
    atomic_path,
    file_digest,
    file_lock,
    read_growing_jsonl,
    read_json,
    read_jsonl,
    remove_unfinished,
    with_sum,
    write_json,
)

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


ROWS = [{"id": "a", "share": 0.5, "text": "ä\u2028"}, {"id": "b", "share": 0.25}, {"id": "c", "share": None}]


@pytest.mark.parametrize(
    "before, after",
    [
        (b"0.25", b"0.24"),
        (b'"b"', b'"d"'),
        (b'"id": "b"', b'"ie": "b"'),
        (b"0.25, ", b"0.25; "),
        (b"\xc3\xa4", b"\xc3\xe4"),
    ],
)
def test_a_damaged_row_is_told_and_left_out_and_the_others_stay(tmp_path, before, after):
    path, told = tmp_path / "rows.jsonl", []
    append_jsonl(path, ROWS)
    assert read_jsonl(path) == read_growing_jsonl(path, told.append) == ROWS and told == []
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(UserError, match=r"rows\.jsonl, line [12]: is|rows\.jsonl: is not UTF-8"):
        read_jsonl(path)
    left = [row for row in ROWS if row["id"] != ("a" if before == b"\xc3\xa4" else "b")]
    damaged = path.read_bytes()
    assert read_growing_jsonl(path, told.append, mend=False) == left and path.read_bytes() == damaged
    assert read_growing_jsonl(path, told.append) == left
    assert len(told) == 2 and "1 of 3 lines are damaged" in told[0]
    assert read_growing_jsonl(path, told.append) == left == read_jsonl(path) and len(told) == 2


def test_a_row_whose_sum_has_lost_its_name_is_damaged(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, ROWS)
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], lines[1].replace("content_sum", "content_sun"), lines[2], ""]))
    assert read_growing_jsonl(path, [].append) == [ROWS[0], ROWS[2]]


def test_rows_of_an_earlier_version_without_sums_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "old"}\n')
    append_jsonl(path, ROWS[:1])
    assert read_growing_jsonl(path, [].append) == [{"id": "old"}, ROWS[0]]


def test_a_file_with_a_sum_of_another_content_is_damaged(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, with_sum({"b": (1, 2), "a": {3: 0.1}}))
    assert read_json(path) == {"b": [1, 2], "a": {"3": 0.1}}
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(Damaged, match="value.json: is damaged"):
        read_json(path)


def test_a_files_digest_is_that_of_its_size_and_of_the_bytes_at_the_places(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"0123456789")
    other.write_bytes(b"0123x56789")
    assert file_digest(one) != file_digest(other)
    assert file_digest(one, [(0, 4), (5, 99)]) == file_digest(other, [(0, 4), (5, 99)])
    assert file_digest(one, [(4, 1)]) != file_digest(other, [(4, 1)])
    other.write_bytes(b"0123456789a")
    assert file_digest(one, [(0, 4)]) != file_digest(other, [(0, 4)])


def test_what_a_kill_leaves_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".hidden").touch()
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "sub" / "a.json") as temporary:
        shutil.copyfile(temporary, tmp_path / "sub" / f"{temporary.name[:-5]}x.tmp")  # as if it were killed
        _ = 1 / 0
    remove_unfinished(tmp_path, older_than=60)
    assert len(list((tmp_path / "sub").iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [".hidden"]
