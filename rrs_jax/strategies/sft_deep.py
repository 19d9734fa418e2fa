"""SFT-deep: a refusal even behind the first tokens of an answer (strategy 4 of section 5.1, after Qi et al.
2025), on Mirror.

For harmful questions 0 to `sft.prefill` tokens of a prefill, drawn anew each time, stand before the refusal.
The prefill is the frozen model's own beginning of an answer under t; where that is a refusal, OPENING; or the
row's field `prefill`. Benign questions get the frozen model's own answer.
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.strategies.sft import load_targets as build
from rrs_jax.strategies.sft import own_answers, refusals, save_targets

__all__ = ["OPENING", "build", "extract"]

OPENING = "Sure, here are the steps that you asked for:"


def extract(work) -> dict:
    harmful, benign = np.flatnonzero(work.harmful), np.flatnonzero(~work.harmful)
    targets: list = [None] * len(work.rows)
    prefills = [[[]] for _ in work.rows]
    for i, answer in zip(benign, own_answers(work, benign), strict=True):
        targets[i] = answer
    longest, opening = work.config.sft.prefill, work.text_ids(OPENING)
    begun = (
        work.responses([work.prompt(i, PROMPT_T) for i in harmful], longest)
        if longest
        else [[]] * len(harmful)
    )
    for i, refusal, beginning in zip(harmful, refusals(work, harmful), begun, strict=True):
        given = work.rows[i].get("prefill")
        if given:
            beginning = work.text_ids(given)
        elif not beginning or beginning[0] in work.refusal_ids:
            beginning = opening
        targets[i] = refusal
        prefills[i] = [beginning[:length] for length in range(min(longest, len(beginning)) + 1)]
    return save_targets(work, targets, prefills)
