"""The data stage: manifests of the training and the evaluation questions, every question with a clip."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config.strategy_table import DATA, STRATEGY_TABLE, load_strategy
from rrs_jax.config.vocabulary import read_categories
from rrs_jax.data.augment import augment_rows
from rrs_jax.data.authors import training_rows
from rrs_jax.data.bad_rows import BadRows
from rrs_jax.data.check import check_excluded
from rrs_jax.data.manifest import audio_paths, load_manifest
from rrs_jax.data.questions import words
from rrs_jax.data.speech import speak_missing
from rrs_jax.data.starter import StarterChoice, build_starter, choose_rows
from rrs_jax.errors import UserError, stop_if_asked
from rrs_jax.files import write_jsonl
from rrs_jax.inputs.audio import audio_faults, check_audios
from rrs_jax.progress import say
from rrs_jax.run.context import RunContext
from rrs_jax.strategies.samples import Samples


def make_data(context: RunContext) -> dict:
    """Manifests with speech: the starter set, or the user's own files with every question spoken that has no
    clip, and behind those for training the starter set's everyday and contrast questions, where they are
    asked for."""
    config, folder = context.config, context.folder
    given = {"train": config[DATA[STRATEGY_TABLE[config.strategy].data]], "eval": config.data.eval_manifest}
    choices = {"train": training_choice(config), "eval": evaluation_choice(config)}
    targets = {"train": folder.manifest, "eval": folder.evaluation_manifest}

    # Both are read before either is written: with an empty run folder, a mistake is mended by another field.
    rows_given = {}
    for split, choice in choices.items():
        stop_if_asked()
        if not given[split]:
            choose_rows(choice)
            continue
        added = choose_rows(added_choice(config)) if split == "train" else []
        rows_given[split] = _read_manifest(Path(given[split]), added, split == "train", config)
    for split, choice in choices.items():
        stop_if_asked()
        if split in rows_given:
            write_jsonl(targets[split], rows_given[split])
            continue
        build_starter(
            targets[split].parent,
            choice,
            voices=",".join(config.data.voices),
            max_cost_usd=config.data.max_cost_usd,
            voices_per_question=config.data.voices_per_question if split == "train" else 1,
        )
    if config.data.augment:
        _augment(folder.manifest, config)
    stop_if_asked()
    rows = context.read_training_rows()
    check_excluded([row["question"] for row in rows], config.data.exclude, skips_bad_rows(config))
    _tell_trained_on(rows, load_manifest(folder.evaluation_manifest))
    return {"harmful": sum(row["label"] == "harmful" for row in rows), "questions": len(rows)}


def _tell_trained_on(training: list[dict], evaluation: list[dict]) -> None:
    """Says how many evaluation questions are trained on, word for word."""
    trained_on = {tuple(words(row["question"])) for row in training}
    number = sum(tuple(words(row["question"])) in trained_on for row in evaluation)
    if number:
        say(
            f"data.eval_manifest: {number} of {len(evaluation)} evaluation questions are training questions"
            " too, and their rates say little of others; ask questions that are not trained on"
            " (--config.data.exclude=FILE refuses a training set that holds those of FILE)"
        )


def _augment(manifest: Path, config: ConfigDict) -> None:
    """Gives the training questions changed clips (`data.augment`). Raises UserError that lists every question
    whose clip is too long or too short then, or leaves such rows out."""
    rows = augment_rows(manifest, load_manifest(manifest), config.data.augment, config.data.seed)
    bad, left_out = BadRows("data.augment", skips_bad_rows(config)), set()
    clips = audio_paths(manifest, rows)
    for position, _, reason in audio_faults(clips, config.data.audio_max_seconds):
        bad.add(f"{rows[position]['id']}: its clip", f"{reason}, after {rows[position]['augmented']}")
        left_out.add(position)
    bad.end(len(rows))
    rows = [row for position, row in enumerate(rows) if position not in left_out]
    check_training_rows(rows, config)
    write_jsonl(manifest, rows)


def added_choice(config: ConfigDict) -> StarterChoice:
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


def training_choice(config: ConfigDict) -> StarterChoice:
    """The built-in training questions, of the kind of data that the run's strategy trains on."""
    data, kind = config.data, STRATEGY_TABLE[config.strategy].data
    return dataclasses.replace(
        added_choice(config),
        split="styles_train" if data.train_set == "styles" else "train",
        pairs_per_category=data.pairs_per_category,
        rewrites_per_pair=data.rewrites_per_pair if kind == "mirror" else 1,
        parallel=kind != "mirror",
        categories=data.categories,
        left_out_categories=read_categories(data.left_out_categories),
        left_out_styles=data.left_out_styles,
    )


def evaluation_choice(config: ConfigDict) -> StarterChoice:
    """The built-in evaluation questions."""
    data = config.data
    return StarterChoice(
        "styles_eval" if data.eval_set == "styles" else data.eval_set,
        pairs_per_category=data.eval_pairs_per_category,
        borderline=data.borderline,
        categories=data.categories,
        seed=data.seed,
    )


def check_training_rows(rows: list[dict], config: ConfigDict) -> None:
    """Raises UserError where the run's strategy needs questions that are not among these rows."""
    if STRATEGY_TABLE[config.strategy].module is not None:
        check = getattr(load_strategy(config.strategy), "check", None)
        if check is not None:
            check(Samples(rows), config)


def skips_bad_rows(config: ConfigDict) -> bool:
    """Returns True where rows that cannot be used are left out and told (`data.bad_rows`)."""
    return config.data.bad_rows == "skip"


def rows_with_sound(rows: list[dict], source: str, config: ConfigDict) -> list[dict]:
    """Returns the rows whose clips (absolute paths) a model can hear; a row without a clip stays.

    Raises UserError that lists every bad clip, or tells the rows that are left out (`data.bad_rows`).
    """
    heard = [row for row in rows if row["audio"]]
    clips, longest = [row["audio"] for row in heard], config.data.audio_max_seconds
    if not skips_bad_rows(config):
        check_audios(clips, max_seconds=longest)
        return rows
    bad, left_out = BadRows(source, skip=True), set()
    for position, clip, reason in audio_faults(clips, longest):
        bad.add(f"{heard[position]['id']}: {clip}", reason)
        left_out.add(id(heard[position]))
    bad.end(len(rows))
    return [row for row in rows if id(row) not in left_out]


def _read_manifest(source: Path, added: list[dict], is_training: bool, config: ConfigDict) -> list[dict]:
    """Returns the user's rows, or those of the authors' folder, with `added` behind them, every question
    spoken that has no clip, and absolute clip paths. Raises UserError that lists every bad row and every bad
    clip."""
    skip = skips_bad_rows(config)
    if source.is_dir():
        rows = training_rows(source, config.data.exclude, config.data.eval_manifest, skip)
    else:
        rows = load_manifest(source, need_audio=False, skip_bad=skip)
    if taken := {row["id"] for row in rows} & {row["id"] for row in added}:
        raise UserError(
            f"{source}: the id {min(taken)!r} is that of a question which data.everyday or data.contrast"
            " adds; give it another id, or set both fields to 0."
        )
    rows += [row | {"audio": None} for row in added]
    if is_training:
        check_training_rows(rows, config)
    data = config.data
    rows = speak_missing(
        rows, ",".join(data.voices), data.seed, data.max_cost_usd, source=str(source), skip_bad=skip
    )
    rows = [row | {"audio": str((source.parent / row["audio"]).absolute())} for row in rows]
    rows = rows_with_sound(rows, str(source), config)
    if is_training:
        check_training_rows(rows, config)  # some may have been left out
    if not rows:
        raise UserError(f"{source}: holds no row that can be used; mend it.")
    return rows
