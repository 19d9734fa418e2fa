"""Places for a run's figures while it runs: JSON lines in its folder, TensorBoard, Weights & Biases.

A figure belongs to a group, "train" for those of a training step, "eval/NAME" for the rates of an evaluation,
and to a step of the training. A step comes once, however often a run was started.

A further place is a class with `write` and `close`, its line in `WRITERS`, and its word in `train.log_to`.
"""

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rrs_jax.distributed import processes
from rrs_jax.errors import UserError
from rrs_jax.files import append_jsonl, read_growing_jsonl, read_json, with_sum, write_atomic, write_jsonl
from rrs_jax.progress import say

TRAIN = "train"


class Writer(Protocol):
    """One place for figures."""

    def write(self, group: str, step: int, values: Mapping[str, float | int | None]) -> None:
        """Keeps the figures of a group at a step; None is one that there is not."""
        ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`, a line a training step, and `rates.jsonl`, a line an evaluation."""

    def __init__(self, folder: Path, last_step: int | None):
        self.steps, self.rates = folder / "metrics.jsonl", folder / "rates.jsonl"
        if last_step is not None and self.steps.exists():
            rows = read_growing_jsonl(self.steps, say)  # what a kill has cut off is computed anew
            write_jsonl(self.steps, [with_sum(row) for row in rows if row["step"] <= last_step])

    def write(self, group: str, step: int, values: Mapping[str, float | int | None]) -> None:
        if group == TRAIN:
            append_jsonl(self.steps, [{"step": step, **values}])
            return
        name = group.removeprefix("eval/")
        rows = read_growing_jsonl(self.rates, say)
        kept = [row for row in rows if (row["evaluation"], row["step"]) != (name, step)]
        write_jsonl(self.rates, map(with_sum, [*kept, {"evaluation": name, "step": step, **values}]))

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files in `tensorboard/`, with the tags GROUP/FIGURE.

    They are written by the caller's thread: that of the package's own writer ends on a full disk, and who has
    more figures than its queue takes then waits for ever.
    """

    FLUSH_SECONDS = 10.0

    def __init__(self, folder: Path, last_step: int | None):
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder, self.event = folder / "tensorboard", Event
        with self._written():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(self.folder / "events"))
            if last_step:  # what an earlier start has written behind it does not count
                start = SessionLog(status=SessionLog.START)
                self.writer.write_event(Event(step=last_step + 1, session_log=start, wall_time=time.time()))
            self.writer.flush()
        self.flushed = time.monotonic()

    def write(self, group: str, step: int, values: Mapping[str, float | int | None]) -> None:
        from tensorboardX.summary import scalar

        with self._written():
            for name, value in values.items():
                if value is not None and name != "epoch":
                    summary = scalar(f"{group}/{name}", value)
                    self.writer.write_event(self.event(step=step, summary=summary, wall_time=time.time()))
            if time.monotonic() - self.flushed > self.FLUSH_SECONDS:
                self.writer.flush()
                self.flushed = time.monotonic()

    def close(self) -> None:
        with self._written():
            self.writer.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder}: writing failed ({error.strerror}); free space or check its rights."
            ) from error


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Lets imports within find no torch, unless it is imported.

    tensorboardX imports one that is installed, which takes a second and 200 MB, for tensors it never gets.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


class WandB:
    """A run of Weights & Biases that every start of the run folder goes on with.

    The project is $WANDB_PROJECT, else rrs-jax; entity, address and mode are wandb's own variables. Raises
    UserError where wandb cannot begin.
    """

    def __init__(self, folder: Path, last_step: int | None):
        import wandb

        known, id_file = folder / "config.json", folder / "wandb" / "id"
        if not id_file.is_file():
            write_atomic(id_file, uuid.uuid4().hex[:12])
        try:
            self.run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "rrs-jax",
                name=folder.resolve().name,
                id=id_file.read_text().strip(),
                dir=str(folder),
                config=read_json(known)["config"] if known.is_file() else None,
                allow_val_change=True,
                resume="allow",
            )
        except Exception as error:  # of a dozen kinds, all of which mean: no run
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"train.log_to: wandb cannot begin ({reason}); run `wandb login`, set WANDB_MODE=offline, or"
                " leave wandb out."
            ) from error
        # Rates come when the steps have passed, and a run's own step does not go back.
        self.run.define_metric("eval/*", step_metric="eval/step")

    def write(self, group: str, step: int, values: Mapping[str, float | int | None]) -> None:
        found = {f"{group}/{name}": value for name, value in values.items() if value is not None}
        if group == TRAIN:
            self.run.log(found, step=step)  # one that is there already is dropped
        else:
            self.run.log(found | {"eval/step": step})

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, Callable[[Path, int | None], Writer]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WandB,
}


class MetricsLog:
    """Writes a run's figures to several places. Of several processes only the first does.

    Args:
      folder: the run's.
      places: names out of `WRITERS`.
      last_step: the step from which training goes on; figures behind it are dropped. None drops none.
    """

    def __init__(self, folder: Path, places: Sequence[str], last_step: int | None = None):
        self.writers = [WRITERS[name](folder, last_step) for name in places] if processes.is_first() else []

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        for writer in self.writers:
            writer.close()

    def write(self, group: str, step: int, **values: float | int | None) -> None:
        """Figures of a group at a step, in this order; a loss over no rows is None."""
        for writer in self.writers:
            writer.write(group, step, values)


def try_wandb(folder: Path) -> None:
    """Opens the run's page and closes it. Raises UserError where wandb cannot begin. Offline needs no try."""
    if os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun"):
        WandB(folder, None).close()
