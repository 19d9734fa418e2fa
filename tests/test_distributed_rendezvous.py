"""Processes that meet, and what is said of those that do not come or contradict one another."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

from helpers.ports import free_port
from rrs_jax.distributed.rendezvous import meet
from rrs_jax.errors import UserError


def together(calls) -> list[str | None]:
    """Calls `meet` with each of the arguments at the same time; returns what each call says."""

    def sentence(arguments):
        try:
            meet(*arguments)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(sentence, calls))


def test_processes_meet_in_any_order_and_strangers_are_passed_over():
    port = free_port()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(meet, f"127.0.0.1:{port}", 3, i, 30.0) for i in (2, 0)]
        with connection(port) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        waiting.append(pool.submit(meet, f"127.0.0.1:{port}", 3, 1, 30.0))
        assert [one.result(60) for one in waiting] == [None] * 3


def connection(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:  # nobody listens yet
            time.sleep(0.05)


def test_who_does_not_come_is_named():
    port = free_port()
    absent = "--num_processes: process 1, 3 did not come in 2 s; start all 4, or give more --join_seconds."
    assert together([(f"127.0.0.1:{port}", 4, 0, 2.0), (f"127.0.0.1:{port}", 4, 2, 2.0)]) == [absent, absent]
    said = together([(f"127.0.0.1:{port}", 2, 1, 1.0)])
    assert said == [
        f"--coordinator: no process 0 answers at 127.0.0.1:{port} in 1 s (Connection refused); start it"
        " there, check name, port and firewall, or give more --join_seconds."
    ]


def test_processes_that_contradict_one_another():
    where = f"127.0.0.1:{free_port()}"
    twice = "--process_id: 1 was given to two processes; give each its own."
    assert together([(where, 3, 0, 20.0), (where, 3, 1, 20.0), (where, 3, 1, 20.0)]) == [twice] * 3
    other = "--num_processes: is 2 in process 0 and 3 in process 1; give all the same."
    assert together([(where, 2, 0, 20.0), (where, 3, 1, 20.0)]) == [other] * 2
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert together([(f"127.0.0.1:{port}", 2, 0, 1.0)]) == [
            f"--coordinator: port {port} cannot be used (Address already in use); give another one."
        ]
