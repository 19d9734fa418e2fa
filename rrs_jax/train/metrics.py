"""`RUN/metrics.jsonl` and TensorBoard: a line a step, each step once, however often a run was started."""

from pathlib import Path

from rrs_jax.distributed import processes
from rrs_jax.files import append_jsonl, read_growing_jsonl, with_sum, write_jsonl
from rrs_jax.progress import say

FIELDS = (
    "step",
    "epoch",
    "loss",
    "loss_harmful",
    "loss_benign",
    "penalty",
    "grad_norm",
    "samples_per_second",
)


class MetricsLog:
    """Appends the metrics of steps behind `last_step`, the one from which the run goes on. Of several
    processes only the first writes."""

    def __init__(self, folder: Path, last_step: int):
        from tensorboardX import SummaryWriter

        self.path = folder / "metrics.jsonl"
        self.writer = None
        if not processes.is_first():
            return
        if self.path.exists():
            rows = read_growing_jsonl(self.path, say)  # what a kill has cut off is computed anew
            write_jsonl(self.path, [with_sum(row) for row in rows if row["step"] <= last_step])
        self.writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=last_step + 1 if last_step else None
        )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, **values: float | int | None) -> None:
        """One step's `FIELDS`; a loss over no rows is None and is left out of TensorBoard."""
        if self.writer is None:
            return
        append_jsonl(self.path, [{name: values[name] for name in FIELDS}])
        for name in FIELDS[2:]:
            if values[name] is not None:
                self.writer.add_scalar(f"train/{name}", values[name], values["step"])
