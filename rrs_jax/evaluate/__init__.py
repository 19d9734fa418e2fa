"""Evaluation: questions in three modes to responses, judgements and rates with intervals (paper, section
5.1).

question_sets.py and settings.py say what is asked, run.py asks and writes the files, responses.py keeps them.
judges.py, phrases.py, model_judges.py (with rubrics.py and endpoint.py) and sheet.py say what a response is.
rates.py counts, agreement.py compares judges, summary.py gives `summary.json`; compare.py and pool.py take
several evaluations, measure.py answers from anywhere. air_bench.py measures helpfulness, endpoint_engine.py
has a server answer.
"""

from rrs_jax.config.vocabulary import JUDGES
from rrs_jax.evaluate.endpoint import EndpointConfig
from rrs_jax.evaluate.engine import Engine, GenerationRequest
from rrs_jax.evaluate.judges.judge import Judge, Judgement, JudgeSettings, judge_all
from rrs_jax.evaluate.judges.registry import make_judges
from rrs_jax.evaluate.measure import measure
from rrs_jax.evaluate.plan import EvaluationPlan, Questions, Target
from rrs_jax.evaluate.rates import nsi, rate_over_queries
from rrs_jax.evaluate.responses import Query, ResponseStore, judge_responses
from rrs_jax.evaluate.run import evaluate_model
from rrs_jax.evaluate.summary import summarise

__all__ = [
    "JUDGES",
    "EndpointConfig",
    "Engine",
    "EvaluationPlan",
    "GenerationRequest",
    "Judge",
    "JudgeSettings",
    "Judgement",
    "Query",
    "Questions",
    "ResponseStore",
    "Target",
    "evaluate_model",
    "judge_all",
    "judge_responses",
    "make_judges",
    "measure",
    "nsi",
    "rate_over_queries",
    "summarise",
]
