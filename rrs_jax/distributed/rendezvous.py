"""The rendezvous of a run's processes, before JAX connects them.

The first process listens at the coordinator's address; each other one sends its number and how many processes
it expects, and waits for the answer. Both prove that they know the run's token, a random text that the first
one writes into the run folder, readable for its user alone, until all are there. The connections are kept for
what JAX sends (`rrs_jax.distributed.tunnel`).
"""

import contextlib
import hmac
import json
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rrs_jax.distributed.machine import SEEN_SECONDS, on_network
from rrs_jax.errors import UserError

GREETING = "rrs_jax"
TOKEN = ".join-token"
GREET_SECONDS = 5.0  # for a stranger who says nothing

Greeted = tuple[int, int, str, socket.socket]  # number, expected count, both nonces, the connection


def meet(coordinator: str, count: int, index: int, seconds: float, folder: Path) -> dict[int, socket.socket]:
    """Returns, when all `count` processes are there, the connections to all of them, or to the first one.

    folder: the run's, which all of them see. Raises UserError, in all that are there, where it takes longer
    than `seconds` or two have one number.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    until = time.monotonic() + seconds
    if index == 0:
        return _await_others(host, int(port), count, until, seconds, folder)
    return {0: _report(host, int(port), count, index, until, seconds, folder)}


def _await_others(
    host: str, port: int, count: int, until: float, seconds: float, folder: Path
) -> dict[int, socket.socket]:
    present: dict[int, Greeted] = {}
    greeted: queue.Queue[Greeted] = queue.Queue()
    mistake = None
    with (
        _listening(host, port, count) as server,
        _written_token(folder) as token,
        _greeting_all(server, token, greeted, 4 * count + 16),
    ):
        while len(present) < count - 1 and mistake is None:
            try:
                one = greeted.get(timeout=max(until - time.monotonic(), 0.01))
            except queue.Empty:
                absent = ", ".join(str(i) for i in range(1, count) if i not in present)
                mistake = (
                    f"--num_processes: process {absent} did not come in {seconds:g} s; start all {count}, or"
                    f" give more --join_seconds.{_only_here(server)}"
                )
                break
            number, expected = one[:2]
            if expected != count:
                mistake = (
                    f"--num_processes: is {count} in process 0 and {expected} in process {number}; give all"
                    " the same."
                )
            elif number in present:
                mistake = f"--process_id: {number} was given to two processes; give each its own."
            present[number if number not in present else -1] = one
        for _, _, nonces, connection in present.values():
            answer = {"mistake": mistake, "proof": _proof(token, nonces, "first", mistake)}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
                if mistake:
                    connection.recv(1)  # it hangs up first, so that the port is free at once
                    connection.close()
    if mistake:
        raise UserError(mistake)
    return {number: one[3] for number, one in present.items()}


def _listening(host: str, port: int, count: int) -> socket.socket:
    """A socket at this address alone."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=max(count, 16))
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno)
        raise UserError(
            f"--coordinator: {host}:{port} cannot be used ({reason}); give an address of this host, where"
            " process 0 runs, and a free port."
        ) from error


def _only_here(server: socket.socket) -> str:
    address = server.getsockname()[0]
    if not (address.startswith("127.") or address == "::1"):
        return ""
    return f" Process 0 listens at {address}, which other hosts do not reach."


@contextlib.contextmanager
def _written_token(folder: Path) -> Iterator[str]:
    """Yields a new token, which stands in a file of this user in the folder meanwhile."""
    token, path = secrets.token_hex(32), folder / TOKEN
    temporary = folder / f"{TOKEN}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(token)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"run_dir: {folder} cannot be written ({error.strerror}); check the folder and its rights."
        ) from error
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _greeting_all(server: socket.socket, token: str, greeted: queue.Queue, most: int) -> Iterator[None]:
    """Puts every process that knows the token into the queue, in the background; passes over all others.

    most: connections that are greeted at the same time; more than that hang on.
    """
    free, over = threading.Semaphore(most), threading.Event()
    server.settimeout(0.2)  # the port is not free as long as a thread waits for it

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            free.acquire()
            threading.Thread(target=greet, args=(connection,), daemon=True).start()

    def greet(connection: socket.socket) -> None:
        said = _greeting(connection, token)
        free.release()
        if said is None:
            connection.close()
        else:
            greeted.put(said)

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        over.set()
        accepting.join(GREET_SECONDS + 1)


def _greeting(connection: socket.socket, token: str) -> Greeted | None:
    ours = secrets.token_hex(16)
    try:
        connection.settimeout(GREET_SECONDS)
        connection.sendall(ours.encode() + b"\n")
        greeting, number, count, theirs, proof = json.loads(_line(connection))
        expected = _proof(token, ours + str(theirs), "other", [number, count])
        if greeting != GREETING or not hmac.compare_digest(str(proof), expected):
            return None
        return int(number), int(count), ours + str(theirs), connection
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _report(
    host: str, port: int, count: int, index: int, until: float, seconds: float, folder: Path
) -> socket.socket:
    reason, answered = "no answer", None
    while time.monotonic() < until:
        try:
            first = socket.create_connection((host, port), timeout=5)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        answered = answered or time.monotonic()
        token = _read_token(folder)
        if token is None:
            reason = f"{folder} has no {TOKEN}"
            if time.monotonic() - answered > (SEEN_SECONDS if on_network(folder) else 5.0):
                first.close()
                raise UserError(
                    f"run_dir: {folder} is not the same folder in all processes (process {index} does not see"
                    " what process 0 writes); give a --config.run_dir on a file system that all hosts share."
                )
        else:
            try:
                mistake = _greeted_by_first(first, token, index, count, until)
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                reason = f"what answers there does not know {folder / TOKEN}"
            else:
                if mistake is None:
                    return first
                first.close()
                raise UserError(mistake)
        first.close()
        time.sleep(0.2)
    raise UserError(
        f"--coordinator: no process 0 answers at {host}:{port} in {seconds:g} s ({reason}); start it there,"
        " check name, port and firewall, or give more --join_seconds."
    )


def _read_token(folder: Path) -> str | None:
    try:
        return (folder / TOKEN).read_text() if TOKEN in os.listdir(folder) else None  # a listing is fresh
    except OSError:
        return None


def _greeted_by_first(first: socket.socket, token: str, index: int, count: int, until: float) -> str | None:
    """The mistake that the first process tells all, or None. Raises where it does not prove who it is."""
    theirs, ours = _line(first).decode().strip(), secrets.token_hex(16)
    proof = _proof(token, theirs + ours, "other", [index, count])
    first.sendall(json.dumps([GREETING, index, count, ours, proof]).encode() + b"\n")
    first.settimeout(max(until - time.monotonic(), 0.01) + 5)  # the first one's own limit comes before
    answer = json.loads(_line(first))
    if not hmac.compare_digest(answer["proof"], _proof(token, theirs + ours, "first", answer["mistake"])):
        raise ValueError("a stranger")
    return answer["mistake"]


def _proof(token: str, nonces: str, side: str, said: object) -> str:
    return hmac.digest(token.encode(), json.dumps([nonces, side, said]).encode(), "sha256").hex()


def _line(connection: socket.socket) -> bytes:
    """Reads to the end of a line and no further, since other bytes may follow."""
    found = b""
    while not found.endswith(b"\n") and len(found) < 4096:
        byte = connection.recv(1)
        if not byte:
            break
        found += byte
    return found
