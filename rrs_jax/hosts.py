"""Several processes, on one host or on several, that do one run together, and what they tell one another.

All of them go through the same stages in step, each with its part of every array on its own devices. What is no work of
the devices (speech, judges, the run's files) the first process does alone, and the others wait for what it says.

In a program of one process everything here does nothing, and JAX is not imported.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from rrs_jax.errors import UserError
from rrs_jax.meeting import meet

PIECE = 2**20  # characters of one message
LEAVE_SECONDS = 5.0  # that one process gives the others to end as it does
SEEN_SECONDS = 70.0  # network file systems keep for up to a minute that a file is not there


@dataclasses.dataclass
class _Here:
    """This process: its number among `count`, the coordination service, and the rounds of messages so far."""

    index: int = 0
    count: int = 1
    client: Any = None
    rounds: int = 0
    leaving: bool = False


_here = _Here()


def is_first() -> bool:
    """Whether this process writes the run's files and talks to the user."""
    return _here.index == 0


def several() -> bool:
    return _here.count > 1


@dataclasses.dataclass(frozen=True)
class Joining:
    """How a process finds the others.

    Attributes:
      coordinator: HOST:PORT at which the first process listens; None: scheduler's variables (SLURM, Open MPI) tell
        this and the next two.
      processes, index: how many there are, and which of them this is, from 0.
      seconds: that all have to come together in.
    """

    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    seconds: int = 300

    def check(self) -> None:
        """Raises UserError for what cannot be."""
        if self.seconds < 1:
            raise UserError(f"--join_seconds: is {self.seconds}; give 1 or more.")
        if self.coordinator is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"--coordinator: {self.coordinator!r} is no HOST:PORT, such as node01:7890.")
        if self.processes is None or self.index is None:
            missing = "--num_processes" if self.processes is None else "--process_id"
            raise UserError(f"--coordinator: needs {missing} too; give how many processes there are and which this is.")
        if self.processes < 1:
            raise UserError(f"--num_processes: is {self.processes}; give 1 or more.")
        if not 0 <= self.index < self.processes:
            raise UserError(
                f"--process_id: is {self.index}; with --num_processes={self.processes} give 0 to {self.processes - 1}."
            )


@contextlib.contextmanager
def joined(joining: Joining | None) -> Iterator[None]:
    """Within it the processes are one program. Where one ends with an exception all do, with its sentence.

    Raises UserError where they do not come together in time. None: this process is alone.
    """
    if joining is None:
        yield
        return
    _join(joining)
    try:
        yield
        gather("")  # none goes before the others are done
    except BaseException as error:
        told = _leave(error)
        if told is error:
            raise
        raise told from error
    _part()


def gather(value: str) -> list[str]:
    """What each process says, in their order; returns when all have said it. All have to call it the same number of
    times. Raises UserError where another one has ended."""
    if not several():
        return [value]
    _here.rounds += 1
    _put(_key(_here.rounds, _here.index), value)
    said = [_get(_key(_here.rounds, index)) for index in range(_here.count)]
    if _here.rounds > 1:  # all have read what was said before, else they would not have come here
        _here.client.key_value_delete(_key(_here.rounds - 1, _here.index))
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
            shown = ", ".join(f"{name} {said[0][name]!r} in process 0 and {other.get(name)!r} in process {index}"
                              for name in names[:3])  # fmt: skip
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"the processes are not started alike ({shown}{more}); give all the same command and program.")


def check_shared(folder: Path) -> None:
    """Raises UserError, in all processes, where a file that the first one writes in `folder` is not seen by all."""
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
            f"run_dir: {folder} is not the same folder in all processes (process {', '.join(blind)} does not see what "
            "process 0 writes); give a --config.run_dir on a file system that all hosts share."
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


def _join(joining: Joining) -> None:
    joining.check()
    import jax
    from jax._src.distributed import global_state  # JAX has no public name for its key-value store

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    cards = None
    if joining.coordinator is None:
        joining, cards = _by_scheduler(joining)
    meet(joining.coordinator, joining.processes, joining.index, joining.seconds)
    try:
        jax.distributed.initialize(
            joining.coordinator, joining.processes, joining.index, local_device_ids=cards,
            initialization_timeout=max(joining.seconds, 60), shutdown_timeout_seconds=60,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--coordinator: the processes cannot come together at {joining.coordinator} ({reason}).") from error
    _here.index, _here.count, _here.client = joining.index, joining.processes, global_state.client
    threading.Thread(target=_watch, daemon=True).start()
    jax.devices()  # found by all at the same time, which wait for one another here


def _by_scheduler(joining: Joining) -> tuple[Joining, list[int] | None]:
    """What the variables of SLURM or Open MPI say, and which of the host's GPUs are this process's."""
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, cards = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, joining.seconds
        )
    except Exception as error:
        raise UserError(f"--distributed: the scheduler's variables cannot be read ({error}).") from error
    if None in (address, count, index):
        raise UserError(
            "--distributed: no scheduler's variables tell the processes apart; start them by srun or mpirun, or give "
            "--coordinator, --num_processes and --process_id."
        )
    found = dataclasses.replace(joining, coordinator=address, processes=count, index=index)
    found.check()
    return found, None if cards is None else list(cards)


def end(status: int) -> NoReturn:
    """Ends the program; at once where others are not on their way out, for whom JAX would wait."""
    if not several():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _part() -> None:
    import jax

    jax.distributed.shutdown()
    _here.index, _here.count, _here.client, _here.rounds = 0, 1, None, 0


def _leave(error: BaseException) -> BaseException:
    """Tells the others why this process ends, and waits a little for them. Returns what it is to end with."""
    _here.leaving = True
    if isinstance(error, UserError):
        told = {"mistake": str(error)}
    else:
        told = {"interrupted": True} if isinstance(error, KeyboardInterrupt) else {"failed": type(error).__name__}
    with contextlib.suppress(Exception):  # the service may be gone with its process
        _put(f"rrs_jax/ended/{_here.index}", json.dumps(told))
    ended = _ended(LEAVE_SECONDS)
    others = {index: why for index, why in ended.items() if index != _here.index}
    mistake = next(((index, why["mistake"]) for index, why in others.items() if "mistake" in why), None)
    if "failed" in told and mistake:  # the connection broke because another one ended
        error = UserError(f"process {mistake[0]}: {mistake[1]}")
    elif "failed" in told and any("interrupted" in why for why in others.values()):
        error = KeyboardInterrupt()
    elif not is_first() and others.get(0) == told and "failed" not in told:
        error = SystemExit(2 if "mistake" in told else 1)  # the first one tells it
    if len(ended) == _here.count and not any("gone" in why for why in others.values()):
        with contextlib.suppress(Exception):
            _part()
    elif isinstance(error, SystemExit):
        end(error.code)
    return error


def _watch() -> None:
    """Ends this process where another one has ended and this one waits on its devices for what will never come."""
    while several():
        time.sleep(1.0)
        if _here.leaving or not _ended(0):
            continue
        time.sleep(LEAVE_SECONDS / 2)
        if _here.leaving or not several():
            return
        why = {index: reason for index, reason in _ended(0).items() if index != _here.index}
        with contextlib.suppress(Exception):
            _put(f"rrs_jax/ended/{_here.index}", json.dumps({"gone": True}))
        if is_first():
            index, reason = next(iter(why.items()), (0, {}))
            told = reason.get("mistake") or "interrupted; the same command resumes"
            if "failed" in reason:
                told = f"it failed with {reason['failed']}, which it tells itself"
            print(f"process {index}: {told}", file=sys.stderr, flush=True)
            time.sleep(LEAVE_SECONDS / 2)  # the service goes with this process, and JAX ends those that miss it
        os._exit(2 if any("mistake" in reason for reason in why.values()) else 1)


def _ended(seconds: float) -> dict[int, dict]:
    """How the processes ended that did, by number, after waiting for all of them."""
    until = time.monotonic() + seconds
    while True:
        found = {}
        with contextlib.suppress(Exception):  # there is none, or no service any more
            for key, text in _here.client.key_value_dir_get("rrs_jax/ended"):
                found[int(key.split("/")[-2])] = json.loads(text[1:])
        if len(found) == _here.count or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _of_several(mistakes: list[str | None]) -> str:
    """The first process's sentence, or another's with its number."""
    index = next(index for index, mistake in enumerate(mistakes) if mistake)
    return mistakes[index] if index == 0 else f"process {index}: {mistakes[index]}"


def _key(round_: int, index: int) -> str:
    return f"rrs_jax/{round_}/{index}"


def _put(key: str, text: str) -> None:
    """In pieces, each with whether another one comes."""
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)] or [""]
    for number, piece in enumerate(pieces):
        _here.client.key_value_set(f"{key}/{number}", ("+" if number + 1 < len(pieces) else ".") + piece)


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
            return _here.client.blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if ended := _ended(0):
            raise RuntimeError(f"another process has ended: {ended}")
