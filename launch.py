"""Runs the stages of RRS in one run folder; the same command resumes it.

    python launch.py --config=configs/mini_rrs.py
    python launch.py --config=configs/qwen2_rrs.py --config.model.path=FOLDER --config.run_dir=RUN
    python launch.py --config=configs/mini_rrs.py --stages=evaluate,report --dry_run
    python launch.py --config=configs/mini_rrs.py --sweep=configs/sweeps/paper.py
    srun python launch.py --config=configs/qwen2_rrs.py --config.run_dir=SHARED/RUN --distributed

Every field is set by `--config.NAME=VALUE`; `python -m rrs_jax.config` lists them. Exit status: 0 when all
stages asked for are done, 2 for a mistake in the input, which one sentence names, 1 otherwise.
"""

from rrs_jax.command.launch import main, start

__all__ = ["main"]

if __name__ == "__main__":
    start()
