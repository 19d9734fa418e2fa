"""Evaluation: questions in three modes to responses, judgements and rates with intervals (paper, section
5.1).

run.py asks and writes the files, responses.py keeps them, judges.py and phrases.py say what a response is,
rates.py counts, summary.py gives `summary.json`.
"""

from rrs_jax.evaluate.judges import JUDGES, Judge, Judgement, JudgeSettings, judge_all, make_judges
from rrs_jax.evaluate.rates import nsi, rate_over_queries
from rrs_jax.evaluate.responses import Query, ResponseStore, judge_responses
from rrs_jax.evaluate.run import GenerationRequest, evaluate_model
from rrs_jax.evaluate.summary import summarise

__all__ = [
    "JUDGES",
    "GenerationRequest",
    "Judge",
    "JudgeSettings",
    "Judgement",
    "Query",
    "ResponseStore",
    "evaluate_model",
    "judge_all",
    "judge_responses",
    "make_judges",
    "nsi",
    "rate_over_queries",
    "summarise",
]
