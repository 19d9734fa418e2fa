"""Evaluation: questions in three modes to responses, judgements and rates (paper, section 5.1).

plan.py                 the arguments of an evaluation: questions, how they are asked, where results go
run.py                  evaluate_model: asks, has judged, sums up; problems.py finds mistakes before
question_sets.py        published question sets; question_subset.py takes a part of the questions
settings.py             prompts and clips of each setting (silence, noise, spelt words, other voices)
engine.py               what answers requests; endpoint_engine.py has a server answer, by endpoint.py
responses.py            responses and judgements on disk
judges/                 what a response is: a refusal, harmful, or no answer
rates.py                rates, intervals and NSI; summary.py makes summary.json of them
finished_evaluation.py  an evaluation read back; compare.py pairs two, pool.py joins seeds
measure.py              judges answers that came from anywhere; inspect_tasks.py is for Inspect
air_bench.py            helpfulness on AIR-Bench: air_bench_items.py reads, air_bench_scores.py sums up
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
