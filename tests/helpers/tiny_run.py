"""A finished run of a small random model, to be copied and damaged."""

import shutil
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config import default_config
from rrs_jax.config.stages import STAGES
from rrs_jax.run import pipeline
from rrs_jax.run.sweep_cache import SweepCache
from rrs_jax.testing import write_manifest, write_qwen2_audio

ALL = tuple(STAGES)


def tiny_config(home: Path) -> ConfigDict:
    """The config of the run in HOME/run, on HOME/model and HOME/data."""
    config = default_config()
    config.model.path, config.model.dtype = str(home / "model"), "float32"
    config.run_dir = str(home / "run")
    config.data.manifest = config.data.eval_manifest = str(home / "data" / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 8, 1e-2
    config.evaluate.samples, config.generate.max_new_tokens = 1, 4
    return config


def make_tiny_run(home: Path) -> SweepCache:
    """Writes model, data and finished run; returns what the run compiled, for more runs in this process."""
    write_qwen2_audio(home / "model")
    write_manifest(home / "data")
    shared = SweepCache()
    pipeline.run(tiny_config(home), ALL, shared)
    return shared


def restore(backup: Path, home: Path) -> None:
    """Puts everything below HOME back as it was when BACKUP was copied from it."""
    shutil.rmtree(home)
    shutil.copytree(backup, home, symlinks=True)
