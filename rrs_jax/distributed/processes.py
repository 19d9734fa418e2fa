"""Several processes, on one host or on several, that do one run together, and what they tell one another.

All of them go through the same stages in step, each with its part of every array on its own devices. What is
no work of the devices (speech, judges, the run's files) the first process does alone, and the others wait for
what it says.

In a program of one process everything here does nothing, and JAX is not imported.
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

from rrs_jax.errors import UserError

PIECE = 2**20  # characters of one message
SEEN_SECONDS = 70.0  # network file systems keep for up to a minute that a file is not there


@dataclasses.dataclass
class Here:
    """This process: its number among `count`, JAX's coordination service, the rounds of messages so far;
    whether it is on its way out, and whether because another one is."""

    index: int = 0
    count: int = 1
    client: Any = None
    rounds: int = 0
    leaving: bool = False
    called_off: bool = False


here = Here()  # `rrs_jax.distributed.join` sets it


def is_first() -> bool:
    """Whether this process writes the run's files and talks to the user."""
    return here.index == 0


def several() -> bool:
    return here.count > 1


def gather(value: str) -> list[str]:
    """What each process says, in their order; returns when all have said it. All have to call it the same
    number of times. RuntimeError where another one has ended."""
    if not several():
        return [value]
    here.rounds += 1
    put(_key(here.rounds, here.index), value)
    said = [_get(_key(here.rounds, index)) for index in range(here.count)]
    if here.rounds > 1:  # all have read what was said before, else they would not have come here
        here.client.key_value_delete(_key(here.rounds - 1, here.index))
    return said


def by_first(work: Callable[[], Any]) -> Any:
    """The first process does it alone; all get what it gives, which JSON can hold, or its UserError."""
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
    """All leave it together: the UserError that one of them meets within it is raised by all."""
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


class Lead:
    """Work that the first process does alone but for some functions, which all run together.

    functions: by name; their arguments are what JSON can hold. What they return stays in each process.
    """

    def __init__(self, functions: dict[str, Callable]):
        self.functions = functions

    def call(self, name: str, *arguments, **own):
        """By the first process: has all run the function; `own` arguments are for this process alone."""
        if several():
            arguments = json.loads(gather(json.dumps({"run": name, "arguments": arguments}))[0])["arguments"]
        return self.functions[name](*arguments, **own)

    def run(self, work: Callable[[], Any]) -> Any:
        """`work`'s value, which JSON can hold; the others follow its calls."""
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
    """Raises UserError, in all processes, where values by their names are not the same in all."""
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
    """Raises UserError, in all processes, where a file that the first one writes in `folder` is not seen by
    all."""
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
    until = time.monotonic() + (SEEN_SECONDS if path.parent.is_dir() and _on_network(path.parent) else 2.0)
    while time.monotonic() < until:
        if path.name in os.listdir(path.parent) if path.parent.is_dir() else ():
            return True
        time.sleep(0.2)
    return False


def _on_network(folder: Path) -> bool:
    """Whether a mount that is no disk of this host's holds the folder; where that cannot be told, yes."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True
    real = str(folder.resolve())
    holding = [m for m in mounts if real == m[1] or real.startswith(m[1].rstrip("/") + "/")]
    kind = max(holding, key=lambda m: len(m[1]))[2] if holding else ""
    return kind not in ("ext4", "ext3", "xfs", "btrfs", "zfs", "tmpfs", "overlay")


def ended(seconds: float) -> dict[int, dict]:
    """How the processes ended that did, by number, after waiting for all of them."""
    until = time.monotonic() + seconds
    while True:
        found = {}
        with contextlib.suppress(Exception):  # there is none, or no service any more
            for key, text in here.client.key_value_dir_get("rrs_jax/ended"):
                found[int(key.split("/")[-2])] = json.loads(text[1:])
        if len(found) == here.count or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _of_several(mistakes: list[str | None]) -> str:
    """The first process's sentence, or another's with its number."""
    index = next(index for index, mistake in enumerate(mistakes) if mistake)
    return mistakes[index] if index == 0 else f"process {index}: {mistakes[index]}"


def _key(round_: int, index: int) -> str:
    return f"rrs_jax/{round_}/{index}"


def put(key: str, text: str) -> None:
    """In pieces, each with whether another one comes."""
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)] or [""]
    for number, piece in enumerate(pieces):
        here.client.key_value_set(f"{key}/{number}", ("+" if number + 1 < len(pieces) else ".") + piece)


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
        try:
            return here.client.blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if ends := ended(0):
            raise RuntimeError(f"another process has ended: {ends}")
