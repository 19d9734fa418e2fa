"""Evaluates one model: questions in up to three modes to responses, judgements and rates in RUN/eval/NAME."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rrs_jax.config.prompts import MODES
from rrs_jax.config.vocabulary import SETTING_MODES
from rrs_jax.errors import UserError
from rrs_jax.evaluate.engine import Engine, GenerationRequest
from rrs_jax.evaluate.judges.judge import Judge
from rrs_jax.evaluate.judges.unreadable import check_readable
from rrs_jax.evaluate.plan import EvaluationPlan, Questions, Target
from rrs_jax.evaluate.problems import check_plan, check_rows
from rrs_jax.evaluate.responses import CLIP_SUM, Key, Query, ResponseStore, judge_responses
from rrs_jax.evaluate.settings import has_clip, setting_prompt
from rrs_jax.evaluate.summary import summarise
from rrs_jax.files import with_sum, write_json
from rrs_jax.progress import Progress

OPTIONAL = ("style", CLIP_SUM)  # fields of a response's row that only some questions have

Missing = dict[Key, tuple[GenerationRequest, Query]]  # responses that are not on disk yet


def evaluate_model(
    engine: Engine,
    questions: Questions,
    plan: EvaluationPlan,
    judges: Sequence[Judge],
    target: Target,
    vanilla: dict | None = None,
) -> dict:
    """Writes responses.jsonl, judgements.jsonl and summary.json of one model; returns the summary.

    The same call continues where a killed one stopped. `vanilla` is the summary of the model before training,
    for NSI. Raises UserError for a mistake in the arguments before anything is generated, and where more than
    a tenth of a judge's verdicts cannot be read.
    """
    plan = _with_available_modes(plan, questions.setting)
    check_plan(plan)
    check_rows(questions.rows, plan)
    queries = _queries(questions, plan)
    made_by = {**engine.made_by, "prompts": _prompts(questions.setting, plan.text_only_variant)}
    store = ResponseStore(target.path / "responses.jsonl", made_by)
    if missing := _missing(store, queries, questions, plan):
        generate_missing(target.name, missing, engine, store)
    responses = store.select(queries, plan.samples)
    judgements = judge_responses(target.path / "judgements.jsonl", responses, judges)
    check_readable(judgements)
    summary = summarise(
        judgements,
        judges,
        name=target.name,
        model=engine.model,
        strategy=target.strategy or target.name,
        samples=plan.samples,
        vanilla=vanilla,
    )
    write_json(target.path / "summary.json", with_sum(summary))
    return summary


def generate_missing(what: str, missing: Missing, engine: Engine, store: ResponseStore) -> None:
    """Generates the missing responses and streams them to disk, even those of a run that fails.

    `what` names the evaluation in messages. Raises RuntimeError where the engine lost a response.
    """
    with (
        store.appending(engine.write_every) as finished,
        Progress(len(missing), f"{what} answers the questions", unit="answers") as progress,
    ):

        def on_finished(request: GenerationRequest, response: str, seconds: float | None = None) -> None:
            _, query = missing[request.key]
            row = {
                "id": query.id,
                "mode": query.mode,
                "set": query.set,
                "category": query.category,
                "question": query.question,
                "sample": request.sample,
                "response": response,
                "seconds": seconds,
            }
            row |= {name: value for name in OPTIONAL if (value := getattr(query, name)) is not None}
            finished.add([row])
            progress.update(1, mode=query.mode)

        engine.generate([request for request, _ in missing.values()], on_finished)
    absent = [key for key in missing if key not in store.rows]
    if absent:
        raise RuntimeError(
            f"{what}: generation ended without {len(absent)} of {len(missing)} responses, e.g. {absent[0]}"
        )


def _with_available_modes(plan: EvaluationPlan, setting: str) -> EvaluationPlan:
    """Leaves out modes that the model or the setting lacks. Raises UserError where none is left."""
    available = [mode for mode in plan.available_modes if mode in SETTING_MODES[setting]]
    kept = tuple(mode for mode in plan.modes if mode in available or mode not in MODES)
    if plan.modes and not kept:
        raise UserError(
            f"evaluate.modes: this model and setting have none of {', '.join(plan.modes)}; choose from"
            f" {', '.join(available)}."
        )
    return replace(plan, modes=kept)


def _queries(questions: Questions, plan: EvaluationPlan) -> list[Query]:
    return [
        Query(
            row["id"],
            row["label"],
            mode,
            row["category"],
            row["question"],
            row.get("style"),
            row.get(CLIP_SUM) if has_clip(questions.setting, mode) else None,
        )
        for mode in plan.modes
        for row in questions.rows
        if row["label"] == "harmful" or mode in plan.over_refusal_modes
    ]


def _prompts(setting: str, text_only_variant: str) -> dict[str, str | None]:
    """Returns the setting's prompt of each mode, with a mark in place of the question."""
    return {
        mode: setting_prompt(setting, mode, "{question}", text_only_variant)
        for mode in SETTING_MODES[setting]
    }


def _missing(
    store: ResponseStore, queries: Sequence[Query], questions: Questions, plan: EvaluationPlan
) -> Missing:
    """Returns a request for every response that is not on disk yet, with its query."""
    audio = {(row["label"], row["id"]): row.get("audio") for row in questions.rows}
    missing = {}
    for query, sample in store.missing(queries, plan.samples):
        text = setting_prompt(questions.setting, query.mode, query.question, plan.text_only_variant)
        clip = None
        if has_clip(questions.setting, query.mode):
            clip = Path(questions.audio_folder) / audio[query.set, query.id]
        missing[query.key(sample)] = GenerationRequest(query.key(sample), text, clip, sample), query
    return missing
