"""SFT-full: cross-entropy on the whole response (strategy 1 of section 5.1), on Basic.

A row of the manifest without a response gets one from the frozen model: its refusal under t̃ if harmful, else
its own answer under t.
"""

import numpy as np

from rrs_jax.strategies.sft import load_targets as build
from rrs_jax.strategies.sft import own_answers, refusals, save_targets

__all__ = ["build", "extract"]


def extract(work) -> dict:
    targets: list = [None] * len(work.rows)
    for i, row in enumerate(work.rows):
        if row["response"]:
            ids = [*work.text_ids(row["response"]), work.end_id]
            targets[i] = ids[: work.config.sft.tokens]
    open_ones = np.array([target is None for target in targets])
    for chosen, make in ((open_ones & work.harmful, refusals), (open_ones & ~work.harmful, own_answers)):
        samples = np.flatnonzero(chosen)
        for i, answer in zip(samples, make(work, samples) if len(samples) else [], strict=True):
            targets[i] = answer
    return save_targets(work, targets)
