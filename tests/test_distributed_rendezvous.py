"""Processes that meet, and what is said of those that do not come or contradict one another."""

import contextlib
import json
import os
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.ports import free_port
from rrs_jax.distributed.rendezvous import GREETING, TOKEN, meet
from rrs_jax.errors import UserError


def together(folder, calls) -> list[str | None]:
    """Calls `meet` with each of the arguments at the same time; returns what each call says."""

    def sentence(arguments):
        try:
            meet(*arguments, folder)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(sentence, calls))


def test_processes_meet_in_any_order_and_strangers_are_passed_over(tmp_path):
    port = free_port()
    where = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(meet, where, 3, i, 30.0, tmp_path) for i in (2, 0)]
        silent = [connection(port) for _ in range(20)]
        for said in (
            b"GET / HTTP/1.1\r\n\r\n",
            json.dumps([GREETING, 1, 3, "00", "00"]).encode() + b"\n",  # without the token
            b"[" * 4000 + b"\n",
            b"\xff" * 9000,
        ):
            with connection(port) as stranger, contextlib.suppress(ConnectionError):
                stranger.sendall(said)
                assert stranger.recv(100).strip().isalnum() and stranger.recv(1) == b""
        token = tmp_path / TOKEN
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
        waiting.append(pool.submit(meet, where, 3, 1, 30.0, tmp_path))
        (last, first, other) = [one.result(60) for one in waiting]
    first[1].sendall(b"to 1")
    other[0].sendall(b"from 1")
    last[0].sendall(b"from 2")
    assert (other[0].recv(9), first[1].recv(9), first[2].recv(9)) == (b"to 1", b"from 1", b"from 2")
    assert os.listdir(tmp_path) == []
    for one in (*silent, *first.values(), *other.values(), *last.values()):
        one.close()


def test_the_first_process_listens_at_the_given_address_alone(tmp_path):
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meet, f"127.0.0.2:{port}", 2, 0, 3.0, tmp_path)
        while not (tmp_path / TOKEN).exists():
            time.sleep(0.02)
        with socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
        for other in ("127.0.0.1", socket.gethostbyname(socket.gethostname())):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, port), timeout=5)
        with pytest.raises(UserError, match=r"listens at 127\.0\.0\.2, which other hosts do not reach"):
            waiting.result(60)
    assert together(tmp_path, [("192.0.2.1:7890", 2, 0, 1.0)]) == [
        "--coordinator: 192.0.2.1:7890 cannot be used (Cannot assign requested address); give an address"
        " of this host, where process 0 runs, and a free port."
    ]


def test_a_process_that_does_not_know_the_token_is_no_part_of_the_run(tmp_path):
    """Nor does one trust a first process that does not know it."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / TOKEN).write_text("0" * 64)
    where = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, where, 2, 0, 3.0, here)
        other = pool.submit(meet, where, 2, 1, 3.0, elsewhere)
        with pytest.raises(UserError, match=r"process 1 did not come in 3 s"):
            first.result(60)
        with pytest.raises(UserError, match=r"what answers there does not know .*elsewhere/\.join-token"):
            other.result(60)
    (elsewhere / TOKEN).unlink()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, where, 2, 0, 8.0, here)
        with pytest.raises(UserError, match=r"run_dir: .*elsewhere is not the same folder in all processes"):
            meet(where, 2, 1, 30.0, elsewhere)
        with pytest.raises(UserError):
            first.result(60)


def connection(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:  # nobody listens yet
            time.sleep(0.05)


def test_who_does_not_come_is_named(tmp_path):
    port = free_port()
    absent = (
        "--num_processes: process 1, 3 did not come in 2 s; start all 4, or give more --join_seconds."
        " Process 0 listens at 127.0.0.1, which other hosts do not reach."
    )
    assert together(tmp_path, [(f"127.0.0.1:{port}", 4, 0, 2.0), (f"127.0.0.1:{port}", 4, 2, 2.0)]) == [
        absent,
        absent,
    ]
    said = together(tmp_path, [(f"127.0.0.1:{port}", 2, 1, 1.0)])
    assert said == [
        f"--coordinator: no process 0 answers at 127.0.0.1:{port} in 1 s (Connection refused); start it"
        " there, check name, port and firewall, or give more --join_seconds."
    ]


def test_processes_that_contradict_one_another(tmp_path):
    where = f"127.0.0.1:{free_port()}"
    twice = "--process_id: 1 was given to two processes; give each its own."
    assert together(tmp_path, [(where, 3, 0, 20.0), (where, 3, 1, 20.0), (where, 3, 1, 20.0)]) == [twice] * 3
    other = "--num_processes: is 2 in process 0 and 3 in process 1; give all the same."
    assert together(tmp_path, [(where, 2, 0, 20.0), (where, 3, 1, 20.0)]) == [other] * 2
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert together(tmp_path, [(f"127.0.0.1:{port}", 2, 0, 1.0)]) == [
            f"--coordinator: 127.0.0.1:{port} cannot be used (Address already in use); give an address"
            " of this host, where process 0 runs, and a free port."
        ]
