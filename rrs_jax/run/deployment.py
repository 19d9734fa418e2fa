"""Measures in the evaluate stage what a deployer asks (`rrs_jax.evaluate.deployment`)."""

from pathlib import Path

from ml_collections import ConfigDict

from rrs_jax.config.prompts import evaluation_prompt
from rrs_jax.data.manifest import load_manifest
from rrs_jax.data.speech import speak_missing
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.errors import UserError
from rrs_jax.evaluate.deployment import KEPT_ANSWERS, write_deployment
from rrs_jax.evaluate.question_sets import question_sets_name
from rrs_jax.evaluate.question_subset import chosen_rows
from rrs_jax.files import write_jsonl
from rrs_jax.progress import say
from rrs_jax.run.context import RunContext
from rrs_jax.run.data_stage import rows_with_sound, skips_bad_rows
from rrs_jax.run.local_engine import TUNED, LocalEngine

TOKENS = 32  # of each of the vanilla model's answers


def measure_deployment(context: RunContext, local: LocalEngine) -> None:
    """Writes deployment.json, and with `evaluate.everyday` kept_answers.jsonl, in RUN/eval/STRATEGY."""
    config, sets = context.config, question_sets_name(context.config.evaluate.questions)
    before, after = (
        context.folder.evaluations / (f"{name}-{sets}" if sets else name)
        for name in ("vanilla", config.strategy)
    )
    if config.evaluate.everyday:
        write_jsonl(after / KEPT_ANSWERS, _kept_answers(context, local))
    write_deployment(after, [before], [after])


def read_everyday(config: ConfigDict) -> list[dict]:
    """Returns the questions of `evaluate.everyday`, at most `evaluate.limit`, with absolute paths of the
    clips that they have.

    Raises UserError that lists every bad row, and where one is not harmless.
    """
    source, limit = config.evaluate.everyday, config.evaluate.limit
    if source == "starter":
        choice = StarterChoice("eval", pairs_per_category=0, everyday=None, seed=config.data.seed)
        return chosen_rows([row | {"audio": None} for row in choose_rows(choice)], limit)
    path = Path(source)
    rows = load_manifest(path, need_audio=False, skip_bad=skips_bad_rows(config))
    if other := [row["id"] for row in rows if row["label"] not in ("benign", "everyday")]:
        raise UserError(
            f"evaluate.everyday: {path} has {len(other)} questions that are labelled neither everyday nor"
            f" benign ({other[0]}); give plain questions on which the model is to stay as it was."
        )
    rows = [row | {"audio": row["audio"] and str((path.parent / row["audio"]).absolute())} for row in rows]
    return chosen_rows(rows, limit)


def _kept_answers(context: RunContext, local: LocalEngine) -> list[dict]:
    config, rows = context.config, read_everyday(context.config)
    modes, variant = context.modes(), config.evaluate.text_only_variant
    if set(modes) != {"text_only"}:
        rows = rows_with_sound(rows, "evaluate.everyday", config)
        rows = speak_missing(
            rows,
            config.data.voices,
            config.data.seed,
            config.data.max_cost_usd,
            source="evaluate.everyday",
            skip_bad=skips_bad_rows(config),
        )
    queries = [(mode, row) for mode in modes for row in rows]
    asked = [
        (
            evaluation_prompt(mode, row["question"], variant),
            None if mode == "text_only" else Path(row["audio"]),
        )
        for mode, row in queries
    ]
    say(f"{config.strategy}: along the vanilla model's answers to {len(rows)} everyday questions")
    found = local.compare(TUNED, asked, TOKENS)
    return [
        {"id": row["id"], "mode": mode, "question": row["question"]} | measured
        for (mode, row), measured in zip(queries, found, strict=True)
    ]
