"""The stages of a run, each from files to files, so that any of them can be repeated or resumed."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config import flatten, resolve
from rrs_jax.config.strategy_table import DATA, STRATEGY_TABLE, load_strategy
from rrs_jax.config.training import TrainConfig, train_config
from rrs_jax.data.authors import training_rows
from rrs_jax.data.check import check_excluded
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.speech import speak_all
from rrs_jax.data.starter import StarterChoice, build_starter, choose_rows
from rrs_jax.data.voices import draw_voice, read_voices
from rrs_jax.distributed import processes
from rrs_jax.distributed.mesh import rows_multiple
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, write_atomic, write_jsonl
from rrs_jax.inputs.audio import check_audios
from rrs_jax.models.lora import LoRAParam
from rrs_jax.progress import say
from rrs_jax.report.page import make_page
from rrs_jax.report.table import markdown_table, text_table
from rrs_jax.run.context import Session, compile_clock, enable_compilation_cache
from rrs_jax.run.evaluate_stage import evaluate_stage
from rrs_jax.run.folder import LEAST_FREE_BYTES, RunFolder, check_disk, source_commit
from rrs_jax.run.recorded_epochs import adapter_hash, keep_adapter, record_representations
from rrs_jax.run.sweep_cache import Shared
from rrs_jax.run.training_set import Work
from rrs_jax.strategies.served import Serving
from rrs_jax.train.loop import train
from rrs_jax.train.memory import fitting_remat, free_memory
from rrs_jax.weights.export import export_adapter, export_merged
from rrs_jax.weights.load import check_path
from rrs_jax.weights.model_card import write_model_card
from rrs_jax.weights.named_models import is_named


def run(config: ConfigDict, stages: Sequence[str], shared: Shared | None = None) -> None:
    """Runs the stages asked for that are not done yet, and prints the table of rates and where everything
    lies.

    `shared` is what a sweep's runs have in common.
    """
    enable_compilation_cache()
    clock = compile_clock()
    config = resolve(config)
    with contextlib.ExitStack() as stack:
        folder = _open(config, stages, stack)
        if not config.endpoint.url:
            with processes.in_step():
                check_path(config.model.path)  # before hours of speech
        session = Session(config, folder, shared)
        if "export" in stages and config.export.merged:
            processes.by_first(lambda: _check_room_for_export(session))
        for name in stages:
            if processes.by_first(lambda: folder.stage_done(name)):  # noqa: B023 (called at once)
                say(f"{name}: done already")
                continue
            start, compiled, programs = time.monotonic(), clock.seconds, clock.programs
            facts = _in_step(name, session) or {}
            seconds = round(time.monotonic() - start, 1)
            compiling = round(clock.seconds - compiled, 1)
            if processes.is_first():
                folder.mark_done(name, seconds=seconds, compiling_seconds=compiling, **facts)
            processes.gather("")  # what the stage wrote is there for all
            say(
                f"{name}: {seconds} s, of which {compiling} s to compile {clock.programs - programs} programs"
            )
    if shared is None and processes.is_first():
        print_summary(folder)


def _open(config: ConfigDict, stages: Sequence[str], stack: contextlib.ExitStack) -> RunFolder:
    """The run's folder, locked until `stack` ends. Raises UserError, in all processes, where it cannot be
    used by one."""
    if processes.several():
        versions = {"the program's commit": source_commit(), "jax": metadata.version("jax")}
        processes.check_alike(flatten(config) | {"--stages": list(stages)} | versions)
    with processes.in_step():
        folder = RunFolder(config.run_dir, config)
        if processes.is_first():
            stack.enter_context(folder.locked())
            folder.check_order(stages)
    processes.check_shared(folder.path)
    return folder


def _check_room_for_export(session: Session) -> None:
    if not session.folder.stage_done("export"):
        base_bytes = sum(file.stat().st_size for file in session.model_folder.glob("*.safetensors"))
        check_disk(session.folder.path, base_bytes + LEAST_FREE_BYTES)


def _in_step(name: str, session: Session) -> dict | None:
    """A stage, of which all processes have their part: data and report the first one does alone."""
    if name not in DEVICE_STAGES:
        return processes.by_first(lambda: STAGE_FUNCTIONS[name](session))
    if processes.several():
        with processes.in_step():  # each host sees the model's folder, the manifests and their clips
            _ = session.model_folder, session.training_rows, session.evaluation_rows
    return STAGE_FUNCTIONS[name](session)


def make_data(session: Session) -> dict:
    """Manifests with speech: the starter set, or the user's own files with every question spoken that has no
    clip, and behind those for training the starter set's everyday and contrast questions, where they are
    asked for."""
    config, folder = session.config, session.folder
    voices = ",".join(config.data.voices)
    kind = STRATEGY_TABLE[config.strategy].data
    for split, given, target in (
        ("train", config[DATA[kind]], folder.manifest),
        ("eval", config.data.eval_manifest, folder.evaluation_manifest),
    ):
        if given:
            added = choose_rows(_added_choice(config)) if split == "train" else []
            _take_manifest(Path(given), added, target, voices, config)
        else:
            train = split == "train"
            build_starter(
                target.parent,
                _training_choice(config, kind) if train else _evaluation_choice(config),
                voices=voices,
                max_cost_usd=config.data.max_cost_usd,
                voices_per_question=config.data.voices_per_question if train else 1,
            )
    rows = session.training_rows
    check_excluded([row["question"] for row in rows], config.data.exclude)
    return {"harmful": sum(row["label"] == "harmful" for row in rows), "questions": len(rows)}


def _added_choice(config: ConfigDict) -> StarterChoice:
    """The starter set's everyday and contrast questions, without pairs."""
    data = config.data
    return StarterChoice(
        "train",
        pairs_per_category=0,
        everyday=data.everyday,
        contrast=data.contrast,
        contrast_role=data.contrast_role,
        seed=data.seed,
    )


def _training_choice(config: ConfigDict, kind: str) -> StarterChoice:
    """The training questions of the starter set for a strategy that trains on data of this kind."""
    data = config.data
    return dataclasses.replace(
        _added_choice(config),
        pairs_per_category=data.pairs_per_category,
        rewrites_per_pair=data.rewrites_per_pair if kind == "mirror" else 1,
        parallel=kind != "mirror",
        categories=data.categories,
    )


def _evaluation_choice(config: ConfigDict) -> StarterChoice:
    data = config.data
    return StarterChoice(
        data.eval_set,
        pairs_per_category=data.eval_pairs_per_category,
        borderline=data.borderline,
        categories=data.categories,
        seed=data.seed,
    )


def _take_manifest(source: Path, added: list[dict], target: Path, voices: str, config: ConfigDict) -> None:
    """Writes the user's rows, or those of the authors' folder, with `added` behind them and absolute clip
    paths. Raises UserError that lists every bad row and every bad clip."""
    if source.is_dir():
        rows = training_rows(source, config.data.exclude, config.data.eval_manifest)
    else:
        rows = load_manifest(source, need_audio=False)
    if taken := {row["id"] for row in rows} & {row["id"] for row in added}:
        raise UserError(
            f"{source}: the id {min(taken)!r} is that of a question which data.everyday or data.contrast"
            " adds; give it another id, or set both fields to 0."
        )
    rows += [row | {"audio": None} for row in added]
    mute = [row for row in rows if not row["audio"]]
    if mute:
        drawn = read_voices(voices)
        texts = [(row["question"], draw_voice(row["question"], config.data.seed, drawn)) for row in mute]
        clips = speak_all(texts, max_cost_usd=config.data.max_cost_usd)
        for row, (path, seconds) in zip(mute, clips, strict=True):
            voice = draw_voice(row["question"], config.data.seed, drawn)
            row |= {"audio": str(path.absolute()), "seconds": round(seconds, 3), "voice": voice.name}
    rows = [row | {"audio": str((source.parent / row["audio"]).absolute())} for row in rows]
    check_audios([row["audio"] for row in rows], max_seconds=config.data.audio_max_seconds)
    write_jsonl(target, rows)


def extract(session: Session) -> dict:
    """What the strategy needs of the frozen model."""
    return load_strategy(session.config.strategy).extract(Work(session))


def train_adapter(session: Session) -> dict:
    """Section 4.2, from the last checkpoint where there is one."""
    config, work = session.config, Work(session)
    strategy = load_strategy(config.strategy).build(work)
    data = dataclasses.replace(work.training_data, prefix_states=lambda: work.prefix_states)
    longest = max(len(ids) for prompts in work.pool for ids, _, _ in prompts)
    longest += max((len(tail) for tails in strategy.tails or () for tail in tails), default=0)
    train(
        session.model,
        strategy,
        data,
        fitting_config(session, longest),
        session.folder.path,
        mesh=session.mesh,
        steps=session.shared.steps,
        on_epoch=lambda epoch, lora: keep_adapter(session, epoch, lora),
    )
    session.prefix_states.clear()
    record_representations(session)
    return {"adapter": adapter_hash(session.model)}


def fitting_config(session: Session, tokens: int) -> TrainConfig:
    """`tokens`: of the longest prompt."""
    config = train_config(session.config)
    if config.optimiser.remat != "auto":
        return config
    free = min(map(float, processes.gather(str(free_memory()))))
    remat = fitting_remat(
        session.config, session.model.config.text, tokens, rows_multiple(session.mesh), free
    )
    return dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, remat=remat))


def evaluate(session: Session) -> dict:
    return evaluate_stage(session, served)


def served(session: Session) -> Serving:
    """What answers for the run's strategy."""
    if not STRATEGY_TABLE[session.config.strategy].trains:
        return load_strategy(session.config.strategy).serve(Work(session))
    model = trained_model(session)
    return Serving([model], {"adapter": adapter_hash(model)})


def trained_model(session: Session) -> nnx.Module:
    """The session's model with its trained adapters, restored where another process trained them."""
    adapters = nnx.to_flat_state(nnx.state(session.model, LoRAParam))
    if not any(np.any(leaf[...]) for path, leaf in adapters if path[-1] == "lora_b"):
        train_adapter(session)  # all steps are done: it only reads the last checkpoint
    return session.model


def export(session: Session) -> dict:
    """The adapter for PEFT and, where asked for, the merged folder; each with a model card."""
    model = trained_model(session)
    return processes.by_first(lambda: _export(session, model))


def _export(session: Session, model: nnx.Module) -> dict:
    config, folder, base = session.config, session.folder, session.model_folder
    name = str(base) if is_named(config.model.path) else config.model.path
    targets = [folder.adapter]
    export_adapter(model, base, folder.adapter, base_name=name, layout=config.export.layout)
    if config.export.merged:
        export_merged(model, base, folder.merged)
        targets.append(folder.merged)
    settings = flatten(config) | {"data.questions": len(session.training_rows)}
    results = markdown_table([folder.path]) if list(folder.evaluations.glob("*/summary.json")) else None
    for target in targets:
        write_model_card(target, base_folder=base, base_name=name, settings=settings, results=results)
    return {}


def report(session: Session) -> dict:
    """The table of rates as Markdown, which the terminal gets at the end of every run, and the page.

    A sweep makes the pages of its runs at its end, all at once.
    """
    folder = session.folder
    write_atomic(folder.report / "table.md", markdown_table([folder.path]))
    if session.shared.folder is None:
        make_page(folder.report, [folder.path], folder.path.resolve().name)
    return {}


STAGE_FUNCTIONS = {
    "data": make_data,
    "extract": extract,
    "train": train_adapter,
    "evaluate": evaluate,
    "export": export,
    "report": report,
}
DEVICE_STAGES = ("extract", "train", "evaluate", "export")


def print_summary(folder: RunFolder) -> None:
    """The table where there is one, the seconds of each stage, and where things lie."""
    if list(folder.evaluations.glob("*/summary.json")):
        print(text_table([folder.path]))
    marks = [(name, folder.path / ".done" / f"{name}.json") for name in STAGE_FUNCTIONS]
    seconds = {name: read_json(mark).get("seconds") for name, mark in marks if mark.is_file()}
    print("seconds: " + ", ".join(f"{name} {value}" for name, value in seconds.items()))
    print(f"in {folder.path}:")
    for place in (
        folder.manifest,
        folder.representations,
        folder.metrics,
        folder.evaluations,
        folder.adapter,
        folder.merged,
        folder.report,
    ):
        if place.exists():
            print(f"  {place.relative_to(folder.path)}")
