"""The data stage: manifests of the training and the evaluation questions, every question with a clip."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config.strategy_table import DATA, STRATEGY_TABLE
from rrs_jax.data.authors import training_rows
from rrs_jax.data.check import check_excluded
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.speech import speak_missing
from rrs_jax.data.starter import StarterChoice, build_starter, choose_rows
from rrs_jax.errors import UserError
from rrs_jax.files import write_jsonl
from rrs_jax.inputs.audio import check_audios
from rrs_jax.run.context import RunContext


def make_data(context: RunContext) -> dict:
    """Manifests with speech: the starter set, or the user's own files with every question spoken that has no
    clip, and behind those for training the starter set's everyday and contrast questions, where they are
    asked for."""
    config, folder = context.config, context.folder
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
    rows = context.read_training_rows()
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
    speak_missing(rows, voices, config.data.seed, config.data.max_cost_usd)
    rows = [row | {"audio": str((source.parent / row["audio"]).absolute())} for row in rows]
    check_audios([row["audio"] for row in rows], max_seconds=config.data.audio_max_seconds)
    write_jsonl(target, rows)
