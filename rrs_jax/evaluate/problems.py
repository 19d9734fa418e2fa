"""What is wrong with a config's judges and question sets, told before anything is generated."""

from collections.abc import Iterable

from rrs_jax.evaluate.judges.registry import judge_problem
from rrs_jax.evaluate.question_sets import question_set_problem


def evaluation_problems(values: dict[str, object]) -> Iterable[str]:
    """Yields a sentence for each judge and question set of these config values that cannot be used."""
    yield from filter(None, map(judge_problem, values["evaluate.judges"]))
    yield from filter(None, map(question_set_problem, values["evaluate.questions"]))
