"""A sweep's runs in several processes of one machine, each of which takes the next run that is left.

They share run_dir/shared: a part that one has made (`rrs_jax.run.sweep_cache`) the others find, and they wait
for one that is being made. A process that fails or dies loses only its own run, and the same command resumes
it.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config import default_config, flatten
from rrs_jax.distributed.machine import environment, memory_share
from rrs_jax.errors import (
    UserError,
    interruptible,
    interruption_asked,
    replace_unprintable,
    scrub,
    stop_if_asked,
    tell_traceback,
)
from rrs_jax.progress import say

LOG = "log.txt"
PREPARING = "data"  # the task that comes before all runs


@dataclasses.dataclass
class Worker:
    """A worker process.

    Attributes:
      process, line: the process, and the pipe to it.
      number: its number, from 0.
      task: the name of its run, or None where it has none.
      since: time at which it got it, of `time.monotonic`.
      strategies: those of the runs that it was given, whose compiled functions it keeps.
    """

    process: multiprocessing.Process
    line: Connection
    number: int
    task: str | None = None
    since: float = 0.0
    strategies: set[str] = dataclasses.field(default_factory=set)


class Jobs:
    """Does `runs` (configs by name) in `number` processes.

    data_runs: names of the runs whose data stages make all questions and clips of the sweep; one process does
      them first.
    stages: each run's stages, by name.
    on_done: called with the folder of each run that is done.
    """

    def __init__(
        self,
        runs: dict[str, ConfigDict],
        data_runs: Sequence[str],
        stages: dict[str, list[str]],
        number: int,
        on_done: Callable[[Path], None] = lambda folder: None,
    ):
        self.runs, self.stages, self.number, self.on_done = runs, stages, min(number, len(runs)), on_done
        self.data_runs = [flatten(runs[name]) for name in data_runs]
        self.folder = Path(next(iter(runs.values())).run_dir).parent
        self.waiting = list(runs)
        self.workers: list[Worker] = []
        self.seconds: list[float] = []
        self.failed: dict[str, str] = {}
        self.crashed = False

    def run(self) -> dict[str, str]:
        """Does all runs and returns what went wrong, by run. Ctrl-C ends the processes; their work stays."""
        try:
            self._prepare()
            while self.waiting or any(worker.task for worker in self.workers):
                for worker in self.workers:
                    if worker.task is None and self.waiting:
                        self._give(worker, self._next(worker))
                self._hear()
        finally:
            self._end()
        return self.failed

    def _prepare(self) -> None:
        """Starts all processes; they load their libraries while the first one makes the data."""
        self.workers = [self._start(number) for number in range(self.number)]
        first = self.workers[0]
        self._give(first, PREPARING)
        while first.task:
            self._hear()
            first = self.workers[0]
        if PREPARING in self.failed:
            raise UserError(f"{self.failed[PREPARING]} (the data stage; {self.folder / 'shared' / LOG})")

    def _start(self, number: int) -> Worker:
        context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
        ours, theirs = context.Pipe()
        log = self.folder / "shared" / LOG
        # No daemon, which could not have the processes that speak.
        process = context.Process(target=work, args=(theirs, self.data_runs, str(log)))
        with environment(self._settings(number)):
            process.start()
        theirs.close()
        return Worker(process, ours, number)

    def _settings(self, number: int) -> dict[str, str]:
        """Returns a process's environment: its share of a card's memory, and its card if there are several.

        The cards are those of CUDA_VISIBLE_DEVICES.
        """
        cards = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card.strip()]
        together = -(-self.number // max(len(cards), 1))
        settings = {} if len(cards) < 2 else {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]}
        return settings | memory_share(together)

    def _next(self, worker: Worker) -> str:
        """Takes a run out of those waiting for this process: the first of a strategy that it has compiled;
        else the first of one that no process has; else the first.

        Compiled functions are a process's own. The compilation cache spares another one XLA's part, but not
        tracing, nor reading the programs.
        """
        strategies = {name: self.runs[name].strategy for name in self.waiting}
        known = set().union(*(other.strategies for other in self.workers))
        own = (name for name in self.waiting if strategies[name] in worker.strategies)
        new = (name for name in self.waiting if strategies[name] not in known)
        name = next(own, None) or next(new, None) or self.waiting[0]
        self.waiting.remove(name)
        worker.strategies.add(strategies[name])
        return name

    def _give(self, worker: Worker, name: str) -> None:
        worker.task, worker.since = name, time.monotonic()
        if name == PREPARING:
            worker.line.send((name, None, None))
            return
        values = flatten(self.runs[name])
        log = Path(values["run_dir"]) / LOG
        say(f"{name}: begins in process {worker.number + 1}, {log}")
        with contextlib.suppress(OSError):  # a process that is dead already is told by `_hear`
            worker.line.send((name, values, self.stages[name]))

    def _hear(self) -> None:
        """Waits until processes report or die, and records what became of their runs."""
        things = [thing for worker in self.workers for thing in (worker.line, worker.process.sentinel)]
        while not (ready := wait(things, timeout=1.0)):
            stop_if_asked()
        for place, worker in enumerate(self.workers):
            if worker.line not in ready and worker.process.sentinel not in ready:
                continue
            try:
                error, crashed = worker.line.recv()
            except (EOFError, OSError):
                worker.process.join()
                status = worker.process.exitcode
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                why = (
                    ", perhaps for want of memory: try a smaller --sweep_jobs"
                    if status == -signal.SIGKILL
                    else ""
                )
                error, crashed = f"its process {how}{why}", True
                worker.line.close()
                self.workers[place] = self._start(worker.number)
            self._record(worker, error, crashed)

    def _record(self, worker: Worker, error: str | None, crashed: bool) -> None:
        name, took, worker.task = worker.task, time.monotonic() - worker.since, None
        self.crashed |= crashed
        if error is not None:
            self.failed[name or f"process {worker.number + 1}"] = error
            if name is None:
                raise UserError(f"sweep: process {worker.number + 1} does not start: {error}.")
        if name == PREPARING:
            return
        self.seconds.append(took)
        if error is None:
            self.on_done(Path(self.runs[name].run_dir))
        outcome = "done" if error is None else f"failed ({error})"
        say(
            f"{name}: {outcome}, {took:.0f} s; {len(self.seconds)} of {len(self.runs)} runs, "
            f"about {self._left():.0f} s left"
        )

    def _left(self) -> float:
        """Returns the seconds left, if the runs to come take as long as those that are done."""
        mean, now = sum(self.seconds) / len(self.seconds), time.monotonic()
        begun = sum(max(mean - (now - worker.since), 0.0) for worker in self.workers if worker.task)
        return (mean * len(self.waiting) + begun) / self.number

    def _end(self) -> None:
        """Ends all processes: idle ones by themselves, busy ones by SIGTERM, and if need be by SIGKILL."""
        for worker in self.workers:
            if worker.task:
                worker.process.terminate()
            worker.line.close()
        deadline = time.monotonic() + (5 if interruption_asked() else 20)  # by which this process is ended
        for worker in self.workers:
            worker.process.join(max(deadline - time.monotonic(), 0.1))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def work(line: Connection, data_runs: list[dict], log: str) -> None:
    """A process of the sweep: does what comes over the line until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError), interruptible():
        _write_to(Path(log))
        replace_unprintable()
        from rrs_jax.run import pipeline
        from rrs_jax.run.sweep_cache import SweepCache

        shared = SweepCache(Path(log).parent)
        while True:
            name, values, stages = line.recv()
            try:
                if name == PREPARING:
                    for run in map(_config, data_runs):
                        pipeline.run(run, ("data",), shared)
                else:
                    _write_to(Path(values["run_dir"]) / LOG)
                    shared.know_clips(map(_config, data_runs))
                    pipeline.run(_config(values), stages, shared)
            except UserError as error:
                say(str(error))
                line.send((str(error), False))
            except Exception as error:
                tell_traceback()
                line.send((scrub(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"), True))
            else:
                line.send((None, False))


def _config(values: dict) -> ConfigDict:
    config = default_config()
    config.update_from_flattened_dict(values)
    return config


def _write_to(log: Path) -> None:
    """Sends what this process and its libraries print to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
