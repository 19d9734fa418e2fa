"""The connections on which JAX's messages between processes travel: those of the rendezvous, kept open.

JAX's service knows no token and would listen at a port that anyone can reach, and its client aborts the
program without a sentence when the service is gone. So both know only a socket in a folder that no other user
can open.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE = 2**16  # bytes read at once


@contextlib.contextmanager
def private_socket() -> Iterator[str]:
    """Yields the path of a socket that is not there yet, in a new folder of this user alone.

    The folder is removed at the end; connections made meanwhile stay.
    """
    folder = tempfile.mkdtemp(prefix="rrs-jax-")
    if len(folder) > 90:  # the system allows about 100 bytes for the whole path
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="rrs-jax-", dir="/tmp")
    try:
        yield f"{folder}/jax"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lead_to_service(connections: list[socket.socket], path: str) -> None:
    """Connects the other processes with JAX's service, which will listen at `path`."""
    for connection in connections:
        threading.Thread(target=_serve, args=(connection, path), daemon=True).start()


def lead_to_first(connection: socket.socket, path: str, seconds: float, on_lost: Callable[[], None]) -> None:
    """Listens at `path` for JAX's client, and connects it with the first process.

    `on_lost` is called, in a thread, where that one hangs up or sends nothing for so many seconds; the client
    does not notice it, and its calls wait.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    threading.Thread(target=_accept, args=(listener, connection, seconds, on_lost), daemon=True).start()


def _serve(connection: socket.socket, path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.02)
    service = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(OSError):
        service.connect(path)
        _tune(connection)
        threading.Thread(target=_pump, args=(service, connection), daemon=True).start()
        _pump(connection, service)
    service.close()


def _accept(
    listener: socket.socket, connection: socket.socket, seconds: float, on_lost: Callable[[], None]
) -> None:
    with listener:
        client, _ = listener.accept()
    _tune(connection)
    threading.Thread(target=_pump, args=(client, connection), daemon=True).start()
    connection.settimeout(seconds)
    _pump(connection, client, close=False)
    on_lost()


def _pump(source: socket.socket, target: socket.socket, close: bool = True) -> None:
    """Passes on what comes until one side hangs up, and then hangs up at the other."""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            target.sendall(piece)
    if close:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _tune(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
