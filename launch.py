"""Runs the stages of RRS in one run folder; the same command resumes it.

    python launch.py --config=configs/mini_rrs.py
    python launch.py --config=configs/qwen2_rrs.py --config.model.path=FOLDER --config.run_dir=RUN
    python launch.py --config=configs/mini_rrs.py --stages=evaluate,report --dry_run
    python launch.py --config=configs/mini_rrs.py --sweep=configs/sweeps/paper.py
    srun python launch.py --config=configs/qwen2_rrs.py --config.run_dir=SHARED/RUN --distributed

Every field is set by `--config.NAME=VALUE`; `python -m rrs_jax.config` lists them. Exit status: 0 when all
stages asked for are done, 2 for a mistake in the input, which one sentence names, 1 otherwise.
"""

import os

from absl import app, flags

from rrs_jax.config import command_line, resolve, validate
from rrs_jax.distributed.join import end, joined
from rrs_jax.distributed.machine import memory_share
from rrs_jax.errors import exit_status
from rrs_jax.evaluate.problems import evaluation_problems

command_line.define_flags()
flags.adopt_module_key_flags(command_line)  # `--help` shows them


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
        with joined(options):
            from rrs_jax.run import pipeline

            pipeline.run(config, stages)


if __name__ == "__main__":
    with exit_status() as status:
        app.run(main, flags_parser=command_line.parse)
    end(status.code)
