"""The rendezvous of a run's processes, before JAX connects them.

JAX's own client would end the program without a sentence where a process is missing. The first process
listens at the coordinator's port, at which JAX's service listens afterwards; each other one sends its number
and how many processes it expects, and waits for the answer.
"""

import contextlib
import json
import os
import socket
import time

from rrs_jax.errors import UserError

GREETING = "rrs_jax"


def meet(coordinator: str, count: int, index: int, seconds: float) -> None:
    """Returns when all `count` processes are there.

    Raises UserError, in all that are there, where that takes longer than `seconds` or two have one number.
    """
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + seconds
    if index == 0:
        _await_others(int(port), count, until, seconds)
    else:
        _report(host.strip("[]"), int(port), count, index, until, seconds)


def _await_others(port: int, count: int, until: float, seconds: float) -> None:
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=max(count, 16),
        )
    except OSError as error:
        raise UserError(
            f"--coordinator: port {port} cannot be used ({os.strerror(error.errno)}); give another one."
        ) from error
    present: dict[int, socket.socket] = {}
    mistake = None
    with server, contextlib.ExitStack() as stack:
        while len(present) < count - 1 and mistake is None:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                other, _ = server.accept()
            except TimeoutError:
                absent = ", ".join(str(i) for i in range(1, count) if i not in present)
                mistake = (
                    f"--num_processes: process {absent} did not come in {seconds:g} s; start all {count}, or"
                    " give more --join_seconds."
                )
                break
            stack.enter_context(other)
            said = _read(other)
            if said is None:  # a stranger
                continue
            number, expected = said
            if expected != count:
                mistake = (
                    f"--num_processes: is {count} in process 0 and {expected} in process {number}; give all"
                    " the same."
                )
            elif number in present:
                mistake = f"--process_id: {number} was given to two processes; give each its own."
            present[number if number not in present else -1] = other
        for other in present.values():
            with contextlib.suppress(OSError):
                other.sendall(json.dumps({"mistake": mistake}).encode() + b"\n")
                other.settimeout(5)
                other.recv(1)  # it hangs up first, so that the port is free at once
    if mistake:
        raise UserError(mistake)


def _report(host: str, port: int, count: int, index: int, until: float, seconds: float) -> None:
    reason = "no answer"
    while time.monotonic() < until:
        try:
            with socket.create_connection((host, port), timeout=5) as first:
                first.sendall(json.dumps([GREETING, index, count]).encode() + b"\n")
                first.settimeout(
                    max(until - time.monotonic(), 0.01) + 5
                )  # the first one's own limit comes before
                answer = _line(first)
            if answer:
                if mistake := json.loads(answer)["mistake"]:
                    raise UserError(mistake)
                return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise UserError(
        f"--coordinator: no process 0 answers at {host}:{port} in {seconds:g} s ({reason}); start it there,"
        " check name, port and firewall, or give more --join_seconds."
    )


def _read(other: socket.socket) -> tuple[int, int] | None:
    other.settimeout(5)
    try:
        greeting, number, count = json.loads(_line(other))
    except (OSError, ValueError, TypeError):
        return None
    return (number, count) if greeting == GREETING else None


def _line(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n") and len(found) < 4096:
        part = connection.recv(4096)
        if not part:
            break
        found += part
    return found
