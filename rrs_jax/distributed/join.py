"""The start of a run of several processes, which come together, and its end, which they reach together."""

import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from rrs_jax.distributed.heartbeats import Heartbeats
from rrs_jax.distributed.processes import (
    ThisProcess,
    ended,
    gather,
    is_first,
    put_message,
    several,
    this_process,
)
from rrs_jax.distributed.rendezvous import meet
from rrs_jax.distributed.tunnel import lead_to_first, lead_to_service, private_socket
from rrs_jax.errors import UserError, interrupt_main, told

LEAVE_SECONDS = 5.0  # for which a process that ends waits for the others
LOST_SECONDS = 30.0  # without a sign of life, after which a process counts as lost


@dataclasses.dataclass(frozen=True)
class JoinOptions:
    """Address and time at which a process meets the others of its run.

    Attributes:
      coordinator: HOST:PORT at which the first process listens; None reads it and the next two from a
        scheduler's variables (SLURM, Open MPI).
      processes: number of processes.
      index: this process's number, from 0.
      seconds: time in which all have to come together.
    """

    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    seconds: int = 300

    def check(self) -> None:
        """Raises UserError for options that contradict one another or lie outside their range."""
        if self.seconds < 1:
            raise UserError(f"--join_seconds: is {self.seconds}; give 1 or more.")
        if self.coordinator is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"--coordinator: {self.coordinator!r} is no HOST:PORT, such as node01:7890.")
        if self.processes is None or self.index is None:
            missing = "--num_processes" if self.processes is None else "--process_id"
            raise UserError(
                f"--coordinator: needs {missing} too; give how many processes there are and which this is."
            )
        if self.processes < 1:
            raise UserError(f"--num_processes: is {self.processes}; give 1 or more.")
        if not 0 <= self.index < self.processes:
            raise UserError(
                f"--process_id: is {self.index}; with --num_processes={self.processes} give 0 to"
                f" {self.processes - 1}."
            )


@contextlib.contextmanager
def joined(options: JoinOptions | None, folder: Path) -> Iterator[None]:
    """Makes the processes one program: where one ends with an exception, all do, with its sentence.

    Raises UserError where they do not come together in time. Does nothing for None, a process that is alone.

    folder: the run's, where the first process leaves the token by which they know one another.
    """
    if options is None:
        yield
        return
    _join(options, folder)
    try:
        yield
        gather("")  # none goes before the others are done
    except BaseException as error:
        ending = _leave(error)
        if ending is error:
            raise
        raise ending from error
    _part()


def _join(options: JoinOptions, folder: Path) -> None:
    options.check()
    import jax
    from jax._src.distributed import global_state  # JAX has no public name for its key-value store

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    cards = None
    if options.coordinator is None:
        options, cards = _by_scheduler(options)
    this_process.parting = False
    others = meet(options.coordinator, options.processes, options.index, options.seconds, folder)
    try:
        with private_socket() as path:
            if options.index == 0:
                lead_to_service(list(others.values()), path)
            else:
                lead_to_first(others[0], path, LOST_SECONDS, _first_lost)
            jax.distributed.initialize(
                f"unix:{path}",
                options.processes,
                options.index,
                local_device_ids=cards,
                initialization_timeout=max(options.seconds, 60),
                shutdown_timeout_seconds=60,
                coordinator_bind_address=f"unix:{path}",
            )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--coordinator: the processes cannot come together at {options.coordinator} ({reason})."
        ) from error
    this_process.index, this_process.count, this_process.client = (
        options.index,
        options.processes,
        global_state.client,
    )
    this_process.heartbeats = Heartbeats(global_state.client, options.index, options.processes)
    this_process.heartbeats.start()
    faulthandler.disable()  # where JAX ends this process, its message is to be the last word
    threading.Thread(target=_watch, daemon=True).start()
    jax.devices()  # found by all at the same time, which wait for one another here


def _by_scheduler(options: JoinOptions) -> tuple[JoinOptions, list[int] | None]:
    """Returns what the variables of SLURM or Open MPI say, and the numbers of this process's GPUs."""
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, cards = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, options.seconds
        )
    except Exception as error:
        raise UserError(f"--distributed: the scheduler's variables cannot be read ({error}).") from error
    if None in (address, count, index):
        raise UserError(
            "--distributed: no scheduler's variables tell the processes apart; start them by srun or mpirun,"
            " or give --coordinator, --num_processes and --process_id."
        )
    found = dataclasses.replace(options, coordinator=address, processes=count, index=index)
    found.check()
    return found, None if cards is None else list(cards)


def end(status: int) -> NoReturn:
    """Ends the program. Where others run on, it ends at once, since JAX would wait for them."""
    if not several():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _part() -> None:
    import jax

    this_process.parting = True
    this_process.heartbeats.stopped.set()
    jax.distributed.shutdown()
    vars(this_process).update(vars(ThisProcess(parting=True)))


def _leave(error: BaseException) -> BaseException:
    """Tells the others why this process ends, waits a little, and returns the exception to end with."""
    this_process.leaving = True
    if isinstance(error, UserError):
        mine = {"mistake": str(error)}
    elif isinstance(error, KeyboardInterrupt) and not this_process.called_off:
        mine = {"interrupted": True}
    else:
        mine = {"failed": type(error).__name__}
    with contextlib.suppress(Exception):  # the service may be gone with its process
        put_message(f"rrs_jax/ended/{this_process.index}", json.dumps(mine))
    ends = ended(LEAVE_SECONDS)
    if "failed" in mine and isinstance(error, RuntimeError):  # a connection broke before its end was missed
        ends = {index: {"lost": True} for index in _silent(LEAVE_SECONDS)} | ends
    others = {index: why for index, why in ends.items() if index != this_process.index}
    mistake = next(((index, why["mistake"]) for index, why in others.items() if "mistake" in why), None)
    if "failed" in mine and mistake:  # called off, or the connection broke, because another one ended
        error = UserError(f"process {mistake[0]}: {mistake[1]}")
    elif "failed" in mine and any("interrupted" in why for why in others.values()):
        error = KeyboardInterrupt()
    elif "failed" in mine and (lost := [index for index, why in others.items() if "lost" in why]):
        _tell_lost(lost)
        error = SystemExit(1)
    elif not is_first() and others.get(0) == mine and "failed" not in mine:
        error = SystemExit(2 if "mistake" in mine else 1)  # the first one tells it
    if len(ends) == this_process.count and not any("gone" in why or "lost" in why for why in others.values()):
        with contextlib.suppress(Exception):
            _part()
    elif isinstance(error, SystemExit):
        end(error.code)
    return error


def _silent(seconds: float) -> list[int]:
    heartbeats = this_process.heartbeats  # which go while this thread looks, when the processes part
    return heartbeats.silent(seconds) if heartbeats else []


def _first_lost() -> None:
    """Ends this process after the first one, with which JAX's service went: nothing can be asked any more."""
    if this_process.leaving or this_process.called_off:  # the end is told, or about to be
        time.sleep(LEAVE_SECONDS)
    if this_process.parting:
        return
    if 0 not in this_process.ends:
        _tell_lost([0])
    os._exit(2 if any("mistake" in why for why in this_process.ends.values()) else 1)


def _tell_lost(lost: list[int]) -> None:
    """Says which processes are lost: the first process does, or all where it is one of them."""
    if is_first() or 0 in lost:
        how = "lost (it was killed, or its host is down); the same command resumes"
        print(f"process {', '.join(map(str, lost))}: {how}", file=sys.stderr, flush=True)


def _watch() -> None:
    """Interrupts this process where another one has ended or is lost, and ends it where it does not react.

    A process that waits for another on its devices cannot react.
    """
    while several():
        time.sleep(1.0)
        if this_process.leaving:
            continue
        for index in _silent(LOST_SECONDS) if not ended(0) else ():
            with contextlib.suppress(Exception):  # another one has said it
                put_message(f"rrs_jax/ended/{index}", json.dumps({"lost": True}))
        if not ended(0):
            continue
        this_process.called_off = True
        interrupt_main()
        time.sleep(LEAVE_SECONDS / 2)
        if this_process.leaving or not several():
            return
        others = {index: why for index, why in ended(0).items() if index != this_process.index}
        with contextlib.suppress(Exception):
            put_message(f"rrs_jax/ended/{this_process.index}", json.dumps({"gone": True}))
        if lost := [index for index, why in others.items() if "lost" in why]:
            _tell_lost(lost)
        elif is_first():
            index, why = next(iter(others.items()), (0, {}))
            ended_by = why.get("mistake") or "interrupted; the same command resumes"
            if "failed" in why:
                ended_by = f"it failed with {why['failed']}, which it tells itself"
            print(told(f"process {index}: {ended_by}"), file=sys.stderr, flush=True)
        if is_first():  # the service goes with this process, and JAX ends those that miss it
            time.sleep(LEAVE_SECONDS / 2)
        os._exit(2 if any("mistake" in why for why in others.values()) else 1)
