"""Runs the stages of RRS in one run folder; the same command resumes it.

    rrs-jax run --config=mini_rrs
    rrs-jax run --config=qwen2_rrs --config.model.path=FOLDER --config.run_dir=RUN
    rrs-jax run --config=mini_rrs --stages=evaluate,report --dry_run
    rrs-jax run --config=mini_rrs --sweep=paper
    srun rrs-jax run --config=qwen2_rrs --config.run_dir=SHARED/RUN --distributed

In a clone of the repository, `python launch.py --config=configs/mini_rrs.py` does the same. Every field is
set by `--config.NAME=VALUE`; `rrs-jax config` lists them. Exit status: 0 when all stages asked for are done,
2 for a mistake in the input, which one sentence names, 1 otherwise.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags

from rrs_jax.config import command_line, resolve, validate
from rrs_jax.distributed.join import end, joined
from rrs_jax.distributed.machine import memory_share
from rrs_jax.errors import exit_status
from rrs_jax.evaluate.problems import evaluation_problems

command_line.define_flags()
for key_flag in flags.FLAGS.get_key_flags_for_module(command_line.__name__):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], key_flag)  # `--help` shows them


def main(_: list[str]) -> None:
    """Runs the stages, a sweep, or the dry run of either, as the flags say. JAX is not imported yet."""
    given, stages = command_line.read()
    config = resolve(given)
    validate(config, evaluation_problems)
    sweep, index, jobs = command_line.sweep_options()
    options = command_line.join_options()
    by_torch = any(name.startswith(("local:", "llama_guard:")) for name in config.evaluate.judges)
    # Several processes of a sweep get their shares there, and torch wants room beside JAX.
    if jobs == 1 and not by_torch:
        os.environ.update(memory_share())
    # Imported here, since they bring in JAX: help and mistakes in the config are told at once.
    if flags.FLAGS.dry_run and sweep is not None:
        from rrs_jax.run.sweep import print_sweep

        print_sweep(given, sweep)
    elif flags.FLAGS.dry_run:
        from rrs_jax.run.dry_run import print_plan

        print_plan(config, stages)
    elif sweep is not None:
        from rrs_jax.run.sweep import run_sweep

        run_sweep(given, sweep, stages, index, jobs)
    else:
        with joined(options, Path(config.run_dir)):
            from rrs_jax.run import pipeline

            pipeline.run(config, stages)


def start(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the program with these arguments, by default the command line's, and ends the process."""
    program = sys.modules["__main__"]
    program.__doc__ = program.__doc__ or __doc__  # what `--help` prints
    with exit_status() as status:
        app.run(
            main,
            argv=None if arguments is None else [sys.argv[0], *arguments],
            flags_parser=command_line.parse,
        )
    end(status.code)
