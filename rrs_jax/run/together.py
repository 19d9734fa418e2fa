"""The one place where a run's processes meet: its folder is opened, and each stage is done, by all in
step."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from importlib import metadata

from ml_collections import ConfigDict

from rrs_jax.config import flatten
from rrs_jax.distributed import processes
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.session import source_commit
from rrs_jax.run.sweep_cache import SweepCache


@dataclasses.dataclass(frozen=True)
class StageWork:
    """A stage's work, and which of a run's processes do it.

    Attributes:
      work: from the context to facts for the stage's mark.
      processes: "all", or "first" for what one process does alone while the others wait.
      prepare: what all processes do before the first one does `work`; None for nothing.
    """

    work: Callable[[RunContext], dict]
    processes: str
    prepare: Callable[[RunContext], object] | None = None


def open_run(
    config: ConfigDict, stages: Sequence[str], cache: SweepCache | None, stack: contextlib.ExitStack
) -> RunContext:
    """The run's context, its folder locked until `stack` ends.

    Raises UserError, in all processes, where the folder cannot be used by one of them.
    """
    if processes.several():
        versions = {"the program's commit": source_commit(), "jax": metadata.version("jax")}
        processes.check_alike(flatten(config) | {"--stages": list(stages)} | versions)
    with processes.in_step():
        folder = RunFolder(config.run_dir, config)
        if processes.is_first():
            stack.enter_context(folder.locked())
            folder.check_order(stages)
    processes.check_shared(folder.path)
    return RunContext(config, folder, cache)


def stage_done(context: RunContext, name: str) -> bool:
    """True where the stage is finished with the values that decide its output now, as the first process
    knows."""
    return processes.by_first(lambda: context.folder.stage_done(name))


def do_stage(context: RunContext, stage: StageWork) -> dict:
    """Facts for the stage's mark, from all processes' parts of its work."""
    if stage.prepare is not None:
        stage.prepare(context)
    if stage.processes == "first":
        return processes.by_first(lambda: stage.work(context))
    if processes.several():
        with processes.in_step():  # each host sees the model's folder, the manifests and their clips
            context.model_folder()
            context.read_training_rows()
            context.read_evaluation_rows()
        processes.check_alike({"the content of model.path": context.model_digest()})
    return stage.work(context)


def mark_done(context: RunContext, name: str, facts: dict) -> None:
    """Marks the stage as done; returns when all processes see what it wrote."""
    if processes.is_first():
        context.folder.mark_done(name, **facts)
    processes.gather("")


def tells_the_user() -> bool:
    """True in the process that prints the run's summary."""
    return processes.is_first()
