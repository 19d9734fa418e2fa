"""The stages of a run, each from files to files, so that any of them can be repeated or resumed."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rrs_jax.config import resolve
from rrs_jax.config.strategy_table import STRATEGY_TABLE, load_strategy
from rrs_jax.distributed.memory import least_free_memory
from rrs_jax.distributed.mesh import rows_multiple
from rrs_jax.errors import stop_if_asked
from rrs_jax.files import read_json, write_atomic
from rrs_jax.progress import say
from rrs_jax.report.deployment import deployment_text
from rrs_jax.report.page import make_page
from rrs_jax.report.separation import figures_meanwhile
from rrs_jax.report.table import markdown_table, text_table
from rrs_jax.run.compilation import compile_clock, enable_compilation_cache
from rrs_jax.run.context import RunContext
from rrs_jax.run.data_stage import check_training_rows, make_data
from rrs_jax.run.evaluate_stage import evaluate_stage
from rrs_jax.run.export_stage import export, exported_model
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.preflight import check_needs
from rrs_jax.run.recorded_epochs import adapter_hash, keep_adapter, keep_again, record_representations
from rrs_jax.run.sweep_cache import SweepCache
from rrs_jax.run.together import StageWork, do_stage, mark_done, open_run, stage_done, tells_the_user
from rrs_jax.strategies.extracted import Extracted, read_extracted, write_extracted
from rrs_jax.strategies.served import Served
from rrs_jax.train.loop import train
from rrs_jax.train.memory import fitting_remat
from rrs_jax.web.page import how_to_open


def run(config: ConfigDict, stages: Sequence[str], cache: SweepCache | None = None) -> None:
    """Runs the stages asked for that are not done yet, and prints the table of rates and where everything
    lies.

    cache: what a sweep's runs have in common.
    """
    enable_compilation_cache()
    with contextlib.ExitStack() as stack:
        context = open_run(resolve(config), stages, cache, stack)
        check_needs(context, [name for name in stages if not stage_done(context, name)])
        drawing = stack.enter_context(contextlib.ExitStack())
        for name in stages:
            stop_if_asked()
            if name == "report":
                drawing.close()  # waits for the figure
            if stage_done(context, name):
                say(f"stage {name}: done already")
                continue
            _do_and_mark(context, name)
            if name == "train" and "report" in stages and _has_idle_cores(context):
                drawing.enter_context(figures_meanwhile(1))(context.folder.path)
    if cache is None and tells_the_user():
        print_summary(context.folder)


def _do_and_mark(context: RunContext, name: str) -> None:
    """Does a stage, and marks it as done with its seconds and facts."""
    clock = compile_clock()
    start, compiled, programs = time.monotonic(), clock.seconds, clock.programs
    facts = do_stage(context, STAGE_WORK[name])
    times = {
        "seconds": round(time.monotonic() - start, 1),
        "compiling_seconds": round(clock.seconds - compiled, 1),
    }
    mark_done(context, name, times | facts)
    made = clock.programs - programs
    compiling = f", {times['compiling_seconds']} s of it to compile {made} programs" if made else ""
    say(f"stage {name}: done in {times['seconds']} s{compiling}")


def _has_idle_cores(context: RunContext) -> bool:
    """True where one core can draw figure 2 beside the evaluation, which an accelerator does.

    A sweep draws the figures of its runs itself.
    """
    return context.cache.folder is None and tells_the_user() and jax.default_backend() != "cpu"


def extract(context: RunContext) -> dict:
    """Writes what the strategy needs of the frozen model; returns its facts."""
    check_training_rows(context.read_training_rows(), context.config)
    training_set, config = context.training_set(), context.config
    strategy = load_strategy(config.strategy)
    extracted = strategy.extract(training_set.samples, training_set.frozen, config)
    if path := extracted_file(context):
        write_extracted(path, extracted)
    return extracted.facts


def train_adapters(context: RunContext) -> dict:
    """Trains the adapters (section 4.2), from the last checkpoint where there is one; returns their hash."""
    training_set, config = context.training_set(), context.config
    strategy = load_strategy(config.strategy).build(_read_extracted(context), training_set.samples, config)
    adapters = train(
        context.start_adapters(),
        strategy,
        training_set.schedule(strategy.tails),
        context.folder.path,
        steps=context.cache.steps,
        prefix_states=training_set.prefix_states,
        remat=_remat(context, strategy),
        on_epoch=lambda epoch, lora: keep_adapter(context, epoch, lora),
    )
    context.prefix_states.clear()
    keep_again(context, adapters)
    record_representations(context)
    return {"adapter": adapter_hash(adapters)}


def _remat(context: RunContext, strategy) -> str:
    """`train.remat`, and in place of `auto` the first one that fits into the memory of every process's
    device."""
    config = context.config
    if config.train.remat != "auto":
        return config.train.remat
    longest = context.training_set().longest_prompt
    longest += max((len(tail) for tails in strategy.tails or () for tail in tails), default=0)
    text, parts = context.load_model().config.text, rows_multiple(context.mesh)
    return fitting_remat(config, text, longest, parts, least_free_memory())


def evaluate(context: RunContext) -> dict:
    """Evaluates the model before and after training."""
    return evaluate_stage(context, serve)


def serve(context: RunContext) -> Served:
    """The model, or the models, that answer for the run's strategy."""
    config = context.config
    if STRATEGY_TABLE[config.strategy].trains:
        model = context.restore_adapters()
        return Served([model], {"adapter": adapter_hash(model)})
    training_set = context.training_set()
    strategy = load_strategy(config.strategy)
    return strategy.serve(_read_extracted(context), training_set.samples, training_set.frozen, config)


def report(context: RunContext) -> dict:
    """Writes the table of rates as Markdown, which the terminal gets at the end of every run, and the page.

    A sweep makes the pages of its runs at its end, all at once.
    """
    folder = context.folder
    table = markdown_table([folder.path]) + deployment_text([folder.path], markdown=True)
    write_atomic(folder.report / "table.md", table)
    if context.cache.folder is None:
        make_page(folder.report, [folder.path], folder.path.resolve().name)
    return {}


STAGE_WORK = {
    "data": StageWork(make_data, "first"),
    "extract": StageWork(extract, "all"),
    "train": StageWork(train_adapters, "all"),
    "evaluate": StageWork(evaluate, "all"),
    "export": StageWork(export, "first", prepare=exported_model),
    "report": StageWork(report, "first"),
}


def extracted_file(context: RunContext) -> Path | None:
    """The file in the run folder that keeps what the strategy takes from the frozen model."""
    name = STRATEGY_TABLE[context.config.strategy].file
    return context.folder.path / name if name else None


def _read_extracted(context: RunContext) -> Extracted:
    path = extracted_file(context)
    return read_extracted(path) if path else Extracted({})


def print_summary(folder: RunFolder) -> None:
    """Prints the table where there is one, seconds of each stage, where things lie, how to see the page."""
    if list(folder.evaluations.glob("*/summary.json")):
        print(text_table([folder.path]) + deployment_text([folder.path]))
    marks = [(name, folder.path / ".done" / f"{name}.json") for name in STAGE_WORK]
    seconds = {name: read_json(mark).get("seconds") for name, mark in marks if mark.is_file()}
    print("seconds: " + ", ".join(f"{name} {value}" for name, value in seconds.items()))
    print(f"in {folder.path}:")
    for place in (
        folder.manifest,
        folder.representations,
        folder.metrics,
        folder.rates,
        folder.evaluations,
        folder.adapter,
        folder.merged,
        folder.report,
    ):
        if place.exists():
            print(f"  {place.relative_to(folder.path)}")
    if (page := folder.report / "index.html").is_file():
        print(how_to_open(page))
