"""The processes of one run, on one host or several, and the messages between them.

All processes run the same stages in step, each with its part of every array on its own devices. Work that
needs no device (speech, judges, the run's files) is done by the first process alone while the others wait for
its result.

In a program of one process these functions do nothing, and JAX is not imported.
"""

import contextlib
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rrs_jax.distributed.machine import SEEN_SECONDS, on_network
from rrs_jax.errors import UserError, stop_if_asked

PIECE = 2**20  # characters of one message


@dataclasses.dataclass
class ThisProcess:
    """This process's place in the run.

    Attributes:
      index: its number, from 0.
      count: number of processes.
      client: JAX's client of the coordination service; None in a program of one process.
      rounds: number of messages exchanged so far, the same in all processes.
      leaving: it is about to end.
      called_off: it was interrupted because another process has ended.
      parting: all have reached the end, and connections may break.
      ends: how processes ended, by number, as far as this one has heard.
      heartbeats: its `rrs_jax.distributed.heartbeats.Heartbeats`; None in a program of one process.
    """

    index: int = 0
    count: int = 1
    client: Any = None
    heartbeats: Any = None
    rounds: int = 0
    leaving: bool = False
    called_off: bool = False
    parting: bool = False
    ends: dict[int, dict] = dataclasses.field(default_factory=dict)


this_process = ThisProcess()  # set by `rrs_jax.distributed.join`


def is_first() -> bool:
    """Returns True in the process that writes the run's files and talks to the user."""
    return this_process.index == 0


def several() -> bool:
    """Returns True where several processes do the run together."""
    return this_process.count > 1


def gather(value: str) -> list[str]:
    """Returns the values of all processes, in their order, once all of them have called it.

    All processes have to call it equally often. Raises RuntimeError where another process has ended.
    """
    if not several():
        return [value]
    this_process.rounds += 1
    put_message(_key(this_process.rounds, this_process.index), value)
    said = [_get(_key(this_process.rounds, index)) for index in range(this_process.count)]
    if this_process.rounds > 1:  # all have read what was said before, else they would not have come here
        this_process.client.key_value_delete(_key(this_process.rounds - 1, this_process.index))
    return said


def by_first(work: Callable[[], Any]) -> Any:
    """Calls `work` in the first process; all get its value, which JSON can hold, or raise its UserError."""
    if not several():
        return work()
    said = {}
    if is_first():
        try:
            said = {"value": work()}
        except UserError as error:
            said = {"mistake": str(error)}
    said = json.loads(gather(json.dumps(said))[0])
    if "mistake" in said:
        raise UserError(said["mistake"])
    return said["value"]


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """Keeps all processes together until each has left the block; a UserError of one is raised by all."""
    mistake = None
    try:
        yield
    except UserError as error:
        if not several():
            raise
        mistake = str(error)
    said = [json.loads(text) for text in gather(json.dumps(mistake))]
    if any(said):
        raise UserError(_of_several(said))


class Leader:
    """Runs work in the first process alone, but for some functions, which all processes run together.

    functions: functions by name, with arguments that JSON can hold. Their values stay in each process.
    """

    def __init__(self, functions: dict[str, Callable]):
        self.functions = functions

    def call(self, name: str, *arguments, **own):
        """Runs a function in all processes, called by the first; `own` arguments stay in this process."""
        if several():
            arguments = json.loads(gather(json.dumps({"run": name, "arguments": arguments}))[0])["arguments"]
        return self.functions[name](*arguments, **own)

    def run(self, work: Callable[[], Any]) -> Any:
        """Returns the value of `work`, which JSON can hold; the other processes follow its calls."""
        if is_first():
            if not several():
                return work()
            try:
                said = {"value": work()}
            except UserError as error:
                gather(json.dumps({"mistake": str(error)}))
                raise
            return json.loads(gather(json.dumps(said))[0])["value"]
        while True:
            said = json.loads(gather("")[0])
            if "mistake" in said:
                raise UserError(said["mistake"])
            if "value" in said:
                return said["value"]
            self.functions[said["run"]](*said["arguments"])


def check_alike(values: dict[str, object]) -> None:
    """Raises UserError, in all processes, where a value is not the same in all of them."""
    said = [json.loads(text) for text in gather(json.dumps(values, default=str))]
    for index, other in enumerate(said):
        names = [name for name in said[0] if other.get(name) != said[0][name]]
        if names:
            shown = ", ".join(
                f"{name} {said[0][name]!r} in process 0 and {other.get(name)!r} in process {index}"
                for name in names[:3]
            )
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"the processes are not started alike ({shown}{more}); give all the same command and program."
            )


def check_shared(folder: Path) -> None:
    """Raises UserError, in all processes, where one does not see a file that the first writes in `folder`."""
    if not several():
        return
    name = by_first(lambda: f".seen-by-all-{uuid.uuid4().hex}")
    path = folder / name
    if is_first():
        path.touch()
    gather("")
    seen = gather("yes" if path.is_file() or _appears(path) else "no")
    if is_first():
        path.unlink()
    blind = [str(index) for index, answer in enumerate(seen) if answer == "no"]
    if blind:
        raise UserError(
            f"run_dir: {folder} is not the same folder in all processes (process {', '.join(blind)} does not"
            " see what process 0 writes); give a --config.run_dir on a file system that all hosts share."
        )


def _appears(path: Path) -> bool:
    until = time.monotonic() + (SEEN_SECONDS if path.parent.is_dir() and on_network(path.parent) else 2.0)
    while time.monotonic() < until:
        if path.name in os.listdir(path.parent) if path.parent.is_dir() else ():
            return True
        time.sleep(0.2)
    return False


def ended(seconds: float) -> dict[int, dict]:
    """Returns how processes ended, by number, after waiting up to `seconds` for all of them."""
    until = time.monotonic() + seconds
    while True:
        found = {}
        with contextlib.suppress(Exception):  # there is none, or no service any more
            for key, text in this_process.client.key_value_dir_get("rrs_jax/ended"):
                found[int(key.split("/")[-2])] = json.loads(text[1:])
        this_process.ends |= found
        if len(found) == this_process.count or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _of_several(mistakes: list[str | None]) -> str:
    """Returns the first process's sentence, or another's with its number."""
    index = next(index for index, mistake in enumerate(mistakes) if mistake)
    return mistakes[index] if index == 0 else f"process {index}: {mistakes[index]}"


def _key(number: int, index: int) -> str:
    return f"rrs_jax/{number}/{index}"


def put_message(key: str, text: str) -> None:
    """Stores a text in pieces, each marked with + where another one follows and with . at the end."""
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)] or [""]
    for number, piece in enumerate(pieces):
        this_process.client.key_value_set(
            f"{key}/{number}", ("+" if number + 1 < len(pieces) else ".") + piece
        )


def _get(key: str) -> str:
    text, number = "", 0
    while True:
        piece = _wait(f"{key}/{number}")
        text, number = text + piece[1:], number + 1
        if piece[0] == ".":
            return text


def _wait(key: str) -> str:
    import jax

    while True:
        stop_if_asked()
        try:
            return this_process.client.blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if ends := ended(0):
            raise RuntimeError(f"another process has ended: {ends}")
