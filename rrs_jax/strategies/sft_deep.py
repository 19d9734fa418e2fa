"""SFT-deep: a refusal even behind the first tokens of an answer (strategy 4 of section 5.1, after Qi et al.
2025), on Mirror.

For harmful questions 0 to `sft.prefill` tokens of a prefill, drawn anew each time, stand before the refusal.
The prefill is the frozen model's own beginning of an answer under t; where that is a refusal, OPENING; or the
row's field `prefill`. Benign questions get the frozen model's own answer.
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.samples import Samples
from rrs_jax.strategies.sft import build, extracted_targets, own_answers, refusals

__all__ = ["OPENING", "build", "extract"]

OPENING = "Sure, here are the steps that you asked for:"


def extract(samples: Samples, frozen, config) -> Extracted:
    """Refusals behind prefills for harmful samples, own answers for benign ones."""
    harmful, benign = np.flatnonzero(samples.harmful), np.flatnonzero(~samples.harmful)
    targets: list = [None] * len(samples)
    prefills = [[[]] for _ in samples.rows]
    for i, answer in zip(benign, own_answers(frozen, config, benign), strict=True):
        targets[i] = answer
    longest, opening = config.sft.prefill, frozen.text_ids(OPENING)
    asked = [frozen.prompt(i, PROMPT_T) for i in harmful]
    begun = frozen.answers(asked, longest) if longest else [[]] * len(harmful)
    refused = refusals(samples, frozen, config, harmful)
    for i, refusal, beginning in zip(harmful, refused, begun, strict=True):
        if given := samples.rows[i].get("prefill"):
            beginning = frozen.text_ids(given)
        elif not beginning or beginning[0] in frozen.refusal_ids:
            beginning = opening
        targets[i] = refusal
        prefills[i] = [beginning[:length] for length in range(min(longest, len(beginning)) + 1)]
    return extracted_targets(samples, frozen, targets, prefills)
