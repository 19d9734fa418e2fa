"""Two commands that begin on one run folder at the same instant."""

import contextlib
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path

from helpers.tiny_run import tiny_config
from rrs_jax.errors import UserError
from rrs_jax.files import read_json


def start_together(home: Path, rounds: int) -> list[str]:
    """Starts two commands, which differ in evaluate.samples, so many times; returns what is wrong.

    One of them has to work and the other to be refused, or to find the work done, and config.json to be of
    one that worked.
    """
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_work, args=(home, rounds, samples, barrier, answers)) for samples in (1, 2)
    ]
    for process in processes:
        process.start()
    ended = [answers.get(timeout=600) for _ in range(2 * rounds)]
    for process in processes:
        process.join()
    faults = []
    for number in range(rounds):
        said = {samples: how for which, samples, how in ended if which == number}
        worked = [samples for samples, how in said.items() if how == "worked"]
        refused = [how for how in said.values() if "another process works in" in how]
        recorded = read_json(home / str(number) / "config.json")["config"]["evaluate"]["samples"]
        if len(worked) + len(refused) != 2 or not worked or recorded not in worked:
            faults.append(f"round {number}: {said}, and config.json is of the one with {recorded}")
    return faults


def _work(home: Path, rounds: int, samples: int, barrier: Barrier, answers) -> None:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        from rrs_jax.run import pipeline

        for number in range(rounds):
            config = tiny_config(home)
            config.run_dir, config.evaluate.samples = str(home / str(number)), samples
            barrier.wait()
            try:
                pipeline.run(config, ("data", "extract"))
                answers.put((number, samples, "worked"))
            except UserError as error:
                answers.put((number, samples, str(error)))
            except Exception as error:
                answers.put((number, samples, f"failed: {error!r}"))
            barrier.wait()
