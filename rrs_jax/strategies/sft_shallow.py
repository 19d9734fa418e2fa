"""SFT-shallow: the answer's first token alone (strategies 2 and 3 of section 5.1), on Mirror or Parallel.

The refusal token for harmful questions; for benign ones the first token of the frozen model's own answer
under t.
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.strategies.sft import load_targets as build
from rrs_jax.strategies.sft import save_targets

__all__ = ["build", "extract"]


def extract(work) -> dict:
    targets = [[work.refusal_ids[0]] for _ in work.rows]
    benign = np.flatnonzero(~work.harmful)
    for i, answer in zip(benign, work.responses([work.prompt(i, PROMPT_T) for i in benign], 1), strict=True):
        targets[i] = answer or [work.end_id]
    return save_targets(work, targets)
