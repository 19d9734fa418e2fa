"""A training found again in its checkpoints: where it stopped, or its adapters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from rrs_jax.config.training import TrainConfig
from rrs_jax.distributed import processes
from rrs_jax.distributed.mesh import mesh_of
from rrs_jax.errors import Damaged, UserError
from rrs_jax.files import content_hash
from rrs_jax.progress import say
from rrs_jax.train.checkpoints import Checkpoints, Position
from rrs_jax.train.step import TrainState, abstract_state


def restore(
    model: nnx.Module,
    config: TrainConfig,
    sample_ids: Sequence[str],
    harmful: np.ndarray,
    folder: Path,
    checkpoint: int | str = "last",
    digest: str = "",
) -> nnx.State:
    """The adapters of a finished training, from a checkpoint in `folder`.

    model: with its adapters at their start. checkpoint: "last", "best" or a number of steps. digest: as in
    `TrainingData`. Raises UserError where the training is not finished, where it is of other settings,
    samples or inputs, or where that checkpoint was not kept.
    """
    total_steps = config.total_steps(len(sample_ids))
    like = abstract_state(model, config.optimiser, mesh_of(model), total_steps)
    with Checkpoints(folder / "checkpoints", config.keep_checkpoints) as checkpoints:
        if (done := checkpoints.latest() or 0) < total_steps:
            raise UserError(
                f"{folder / 'checkpoints'}: holds {done} of {total_steps} steps; run the stage train again."
            )
        named = {"last": done, "best": checkpoints.best()}
        step = named.get(checkpoint, checkpoint)
        if step not in checkpoints.steps():
            raise UserError(
                f"export.checkpoint: {checkpoint} was not kept; {folder / 'checkpoints'} has"
                f" {', '.join(map(str, checkpoints.steps()))} (train.keep_checkpoints keeps more)."
            )
        state, _ = _at(step, checkpoints, like, beginning(config, sample_ids, harmful, digest))
    return state.result


def beginning(config: TrainConfig, sample_ids: Sequence[str], harmful: np.ndarray, digest: str) -> Position:
    """The first position of a run, with the hash of all that shapes its adapters."""
    settings = content_hash(config.result_settings(), list(sample_ids), np.asarray(harmful).tolist())
    return Position(0, 0, 0, config.seed, 0.0, settings, digest)


def latest(checkpoints: Checkpoints, like: TrainState, fresh: Position) -> tuple[TrainState, Position] | None:
    """The folder's latest checkpoint that can be restored; None where there is none. One that cannot is
    removed, and told.

    Raises UserError as `_at` does.
    """
    while (step := checkpoints.latest()) is not None:
        try:
            return _at(step, checkpoints, like, fresh)
        except Damaged as error:
            if processes.several():  # which may not all have failed
                raise
            say(f"{str(error).partition('; ')[0]}; it is removed, and the training goes on without it")
            checkpoints.remove(step)
    return None


def _at(
    step: int, checkpoints: Checkpoints, like: TrainState, fresh: Position
) -> tuple[TrainState, Position]:
    """The checkpoint of a step. Raises UserError where it is of other settings or samples than `fresh`."""
    state, position = checkpoints.restore(step, like)
    if position.settings != fresh.settings:
        raise UserError(
            f"{checkpoints.folder}: was made with other training settings or samples; choose another run_dir,"
            " restore the settings, or delete the folder."
        )
    if position.inputs and fresh.inputs and position.inputs != fresh.inputs:
        raise UserError(
            f"{checkpoints.folder}: was made on another content of the model folder or the training clips;"
            " restore them, choose another run_dir, or delete the folder."
        )
    return state, position
