"""Checkpoints of a run under `RUN/checkpoints/STEP/`, written by Orbax in the background.

Each has `sums.json`, the digests of its files, by which a damaged one is found.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rrs_jax.distributed import processes
from rrs_jax.errors import Damaged, UserError
from rrs_jax.files import file_digest, read_json, with_sum, write_json
from rrs_jax.progress import say
from rrs_jax.train.step import TrainState

SUMS = "sums.json"
# Orbax writes these behind the sums. When it was committed is all that the first of them says.
METADATA, COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"


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
    before. Leaving the context waits for the one being written. Entering it removes a checkpoint whose files
    are not what was written, which is told.
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
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
        )
        with self._written():
            processes.by_first(lambda: remove_damaged(folder))
            folder.mkdir(parents=True, exist_ok=True)
            self.manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self.args = ocp.args

    def __enter__(self) -> "Checkpoints":
        self.quiet = contextlib.ExitStack()
        self.quiet.enter_context(_told_once())
        return self

    def __exit__(self, kind, *_) -> None:
        with self.quiet, self._written():
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
            leaves = [restored.state[name] for name in names]
            return jax.tree.unflatten(jax.tree.structure(like), leaves), Position(**restored.position)
        except Exception as error:  # the storage beneath Orbax raises of every kind
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Damaged(
                f"{self.folder / str(step)}: cannot be restored ({reason}); delete this checkpoint to go on"
                " from the one before."
            ) from error

    def remove(self, step: int) -> None:
        """Removes a checkpoint that cannot be restored."""
        self.manager.delete(step)

    def _write_sums(self) -> None:
        """Adds the digests to the checkpoint whose files are all written and which has no name yet."""
        if processes.is_first():
            for unnamed in self.folder.glob("*.orbax-checkpoint-tmp*"):
                write_json(unnamed / SUMS, with_sum(_sums(unnamed)))

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


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Has a failed write told by its exception alone, which the next call raises.

    Each of Orbax's threads logs its traceback as well, and the storage library prints one for each array that
    was still to be written: hundreds of lines on a full disk.
    """

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def tell(dropped: Any) -> None:
        if str(dropped.exc_value) != "Event loop is closed":
            hook(dropped)

    hook, log = sys.unraisablehook, logging.getLogger("absl")
    sys.unraisablehook = tell
    log.addFilter(is_of_others)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        log.removeFilter(is_of_others)


def remove_damaged(folder: Path) -> None:
    """Removes checkpoints whose files are not what was written, and tells which; those of earlier versions,
    which have no sums, are left to whoever restores them."""
    for checkpoint in sorted(folder.glob("*"), key=lambda path: path.name):
        if checkpoint.name.isdigit() and (fault := _fault(checkpoint)):
            say(f"{checkpoint}/{fault}; this checkpoint is removed, and the training goes on without it")
            shutil.rmtree(checkpoint)


def _fault(checkpoint: Path) -> str | None:
    """Returns which file of a checkpoint is not what was written, and how; None for a whole one."""
    try:
        for name in (METADATA, "metrics/metrics"):  # which Orbax reads when it opens the folder
            json.loads((checkpoint / name).read_bytes())
        known = read_json(checkpoint / SUMS) if (checkpoint / SUMS).is_file() else {}
    except UserError:
        return f"{SUMS} is damaged"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError):
        return f"{name} is damaged"
    for name, digest in known.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if file_digest(checkpoint / name) != digest:
            return f"{name} is not what was written"
    return None


def _sums(checkpoint: Path) -> dict[str, str]:
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
    return {
        file.relative_to(checkpoint).as_posix(): file_digest(file)
        for file in files
        if file not in (checkpoint / METADATA, checkpoint / COMMITTED)
    }


def named_leaves(tree) -> dict[str, jax.Array]:
    """Every array by its dotted path, in the tree's order: a format that outlives the classes of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in leaves
    }
