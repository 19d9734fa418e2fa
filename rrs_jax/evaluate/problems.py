"""Mistakes in judges, question sets and questions, reported before anything is generated."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rrs_jax.config.prompts import MODES, TEXT_ONLY_VARIANTS
from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges.registry import judge_problem
from rrs_jax.evaluate.plan import EvaluationPlan
from rrs_jax.evaluate.question_sets import question_set_problem
from rrs_jax.evaluate.responses import SETS


def evaluation_problems(values: dict[str, object]) -> Iterable[str]:
    """Yields a sentence for each judge and question set of these config values that cannot be used."""
    yield from filter(None, map(judge_problem, values["evaluate.judges"]))
    yield from filter(None, map(question_set_problem, values["evaluate.questions"]))


def check_plan(plan: EvaluationPlan) -> None:
    """Raises UserError for an unknown or repeated mode, no mode, no sample, or an unknown variant."""
    for field, values in (
        ("evaluate.modes", plan.modes),
        ("evaluate.over_refusal_modes", plan.over_refusal_modes),
    ):
        unknown = [mode for mode in values if mode not in MODES]
        if unknown or len(set(values)) < len(values):
            raise UserError(
                f"{field}: {', '.join(unknown or values)}; name each mode once, from {', '.join(MODES)}."
            )
    if not plan.modes:
        raise UserError(f"evaluate.modes: is empty; choose from {', '.join(MODES)}.")
    if plan.samples < 1:
        raise UserError(f"evaluate.samples: is {plan.samples}; ask for at least one response a question.")
    if plan.text_only_variant not in TEXT_ONLY_VARIANTS:
        raise UserError(
            f"evaluate.text_only_variant: {plan.text_only_variant!r} is unknown; choose"
            f" {' or '.join(TEXT_ONLY_VARIANTS)}."
        )


def check_rows(rows: Sequence[dict], plan: EvaluationPlan) -> None:
    """Raises UserError for questions that cannot be asked; one message names all rows of the same fault."""
    if problem := next(_row_problems(rows, plan), None):
        raise UserError(f"evaluation questions: {problem}")


def _row_problems(rows: Sequence[dict], plan: EvaluationPlan) -> Iterator[str]:
    if not rows:
        yield "the file holds none; give at least one row."
    if labels := sorted({str(row["label"]) for row in rows} - set(SETS)):
        yield f"label {', '.join(labels)} is unknown; use {', '.join(SETS)}."
    keys = Counter((row["label"], row["id"]) for row in rows)
    if twice := [key for key, count in keys.items() if count > 1]:
        yield f"id {_listed(twice)} occurs twice in its set; make each id unique."
    if empty := [(row["label"], row["id"]) for row in rows if not (row["question"] or "").strip()]:
        yield f"{_listed(empty)} has no question; write or delete the row."
    spoken = [mode for mode in plan.modes if mode != "text_only"]
    over_refusal = set(spoken) & set(plan.over_refusal_modes)
    needing = [row for row in rows if (spoken if row["label"] == "harmful" else over_refusal)]
    if mute := [(row["label"], row["id"]) for row in needing if not row.get("audio")]:
        yield (
            f"{_listed(mute)} has no audio, which {' and '.join(spoken)} need; run the data stage or evaluate"
            " text_only alone."
        )


def _listed(keys: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{identity} ({label})" for label, identity in keys)
