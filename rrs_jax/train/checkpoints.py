"""Checkpoints of a run under `RUN/checkpoints/STEP/`, written by Orbax in the background."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from rrs_jax.errors import UserError
from rrs_jax.train.step import TrainState


@dataclasses.dataclass
class Position:
    """A run's place in its training, beside its arrays.

    Attributes:
      step: updates made, in all epochs.
      epoch, batch: the next step's epoch, and how many steps of it are done; both from 0.
      random_key: the seed; with epoch and step it fixes every later draw.
      epoch_loss: sum of the losses of the current epoch's steps so far.
      settings: hash of all that shapes the run; a run goes on only with the same.
      inputs: digest of the model folder and the clips (`rrs_jax.train.batches.TrainingData`), as settings;
        empty in checkpoints of earlier versions, which go on with any.
    """

    step: int
    epoch: int
    batch: int
    random_key: int
    epoch_loss: float
    settings: str
    inputs: str = ""


class Checkpoints:
    """Keeps the last `keep_last` checkpoints and the one at the end of the epoch with the lowest mean loss.

    A checkpoint appears under its name only when it is complete, so a run killed at any moment finds the one
    before. Leaving the context waits for the one being written.
    """

    def __init__(self, folder: Path, keep_last: int):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        def loss(metrics: dict[str, float]) -> float:
            return metrics["loss"] if metrics["epoch_ends"] else float("inf")

        self.folder = folder
        best = policies.BestN(get_metric_fn=loss, reverse=True, n=1)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_last), best]),
            best_fn=loss,
            best_mode="min",
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        with self._written():
            folder.mkdir(parents=True, exist_ok=True)
            self.manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self.args = ocp.args

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._written():
            try:
                if kind is None:
                    self.manager.wait_until_finished()
            finally:
                self.manager.close()

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of the kept checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        return self.manager.best_step()

    def save(self, state: TrainState, position: Position, mean_loss: float) -> None:
        """Returns when the arrays are copied; they are written while training goes on. `mean_loss` is the
        epoch's so far."""
        arrays = jax.tree.map(jnp.copy, named_leaves(state))  # the next step donates the state's own buffers
        items = self.args.Composite(
            state=self.args.StandardSave(arrays), position=self.args.JsonSave(dataclasses.asdict(position))
        )
        metrics = {"loss": mean_loss, "epoch_ends": position.batch == 0}
        with self._written():
            self.manager.save(position.step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Position]:
        """The state in the shardings of `like`, which gives its structure."""
        names = named_leaves(like)
        shapes = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in names.items()
        }
        items = self.args.Composite(state=self.args.StandardRestore(shapes), position=self.args.JsonRestore())
        try:
            restored = self.manager.restore(step, args=items)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.folder / str(step)}: cannot be restored ({reason}); delete this checkpoint to go on"
                " from the one before."
            ) from error
        leaves = [restored.state[name] for name in names]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), Position(**restored.position)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turns what went wrong in the background, which the next call raises, into a UserError. The storage
        library beneath Orbax reports errors of the file system as ValueError."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "os_error_code" not in str(error):
                raise
            reason = getattr(error, "strerror", None) or str(error).rsplit(": ", 1)[-1]
            raise UserError(
                f"{self.folder}: writing a checkpoint failed ({reason}); free space or check the folder's"
                " rights, then start the same command again."
            ) from error


def named_leaves(tree) -> dict[str, jax.Array]:
    """Every array by its dotted path, in the tree's order: a format that outlives the classes of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in leaves
    }
