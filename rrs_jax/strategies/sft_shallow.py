"""SFT-shallow: the answer's first token alone (strategies 2 and 3 of section 5.1), on Mirror or Parallel.

The refusal token for harmful questions; for benign ones the first token of the frozen model's own answer
under t.
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.samples import Samples
from rrs_jax.strategies.sft import build, extracted_targets

__all__ = ["build", "extract"]


def extract(samples: Samples, frozen, config) -> Extracted:
    """The refusal token for harmful samples, the first token of the frozen model's answer for benign ones."""
    targets = [[frozen.refusal_ids[0]] for _ in samples.rows]
    benign = np.flatnonzero(~samples.harmful)
    made = frozen.answers([frozen.prompt(i, PROMPT_T) for i in benign], 1)
    for i, answer in zip(benign, made, strict=True):
        targets[i] = answer or [frozen.end_id]
    return extracted_targets(samples, frozen, targets)
