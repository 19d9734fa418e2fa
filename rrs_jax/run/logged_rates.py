"""The rates of a run's evaluations beside the figures of its training, at the step of the model that
answered."""

from collections.abc import Iterable
from pathlib import Path

from rrs_jax.config.strategy_table import STRATEGY_TABLE
from rrs_jax.config.training import train_config
from rrs_jax.evaluate.plan import Target
from rrs_jax.run.context import RunContext
from rrs_jax.train.metrics import MetricsLog


def log_rates(context: RunContext, evaluations: Iterable[tuple[Target, dict]]) -> None:
    """Writes the rates of evaluations, each with its summary, where `train.log_to` says."""
    with MetricsLog(context.folder.path, context.config.train.log_to) as log:
        for target, summary in evaluations:
            log.write(f"eval/{target.name}", _step(context, target), **rates_of(summary))


def rates_of(summary: dict) -> dict[str, float | None]:
    """Rates in percent by name, of the first judge; None for one that there is not."""
    found = {f"asr_{mode}": block and block["asr"] for mode, block in summary["modes"].items()}
    names = [name for name in ("orr", "borderline_orr", "everyday_orr") if name in summary]
    found |= {name: summary[name] and summary[name]["rate"] for name in names}
    return found | {"nsi": summary["nsi"] and summary["nsi"]["average"]}


def _step(context: RunContext, target: Target) -> int:
    """The number of training steps behind the model of an evaluation."""
    config, folder = context.config, Path(target.folder)
    if target.strategy == "vanilla" or not STRATEGY_TABLE[config.strategy].trains:
        return 0
    settings, samples = train_config(config), len(context.read_training_rows())
    if folder.parent.name == "epochs":
        return int(folder.name) * settings.steps_per_epoch(samples)
    return settings.total_steps(samples)
