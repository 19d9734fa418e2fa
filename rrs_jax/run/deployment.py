"""Measures in the evaluate stage what a deployer asks (`rrs_jax.evaluate.deployment`)."""

from pathlib import Path

from rrs_jax.config.prompts import evaluation_prompt
from rrs_jax.evaluate.deployment import KEPT_ANSWERS, write_deployment
from rrs_jax.evaluate.question_sets import question_sets_name
from rrs_jax.files import write_jsonl
from rrs_jax.progress import say
from rrs_jax.run.context import RunContext
from rrs_jax.run.everyday import spoken_everyday
from rrs_jax.run.local_engine import TUNED, LocalEngine

TOKENS = 32  # of each of the vanilla model's answers


def measure_deployment(context: RunContext, local: LocalEngine) -> None:
    """Writes deployment.json, and with `evaluate.everyday` kept_answers.jsonl, in RUN/eval/STRATEGY.

    Answers behind an endpoint have no likelihoods, so that there is no kept_answers.jsonl of them.
    """
    config, sets = context.config, question_sets_name(context.config.evaluate.questions)
    before, after = (
        context.folder.evaluations / (f"{name}-{sets}" if sets else name)
        for name in ("vanilla", config.strategy)
    )
    if config.evaluate.everyday and not config.endpoint.url:
        write_jsonl(after / KEPT_ANSWERS, _kept_answers(context, local))
    write_deployment(after, [before], [after])


def _kept_answers(context: RunContext, local: LocalEngine) -> list[dict]:
    config, modes = context.config, context.modes()
    rows, variant = spoken_everyday(config, modes), config.evaluate.text_only_variant
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
