"""SFT-full: cross-entropy on the whole response (strategy 1 of section 5.1), on Basic.

A row of the manifest without a response gets one from the frozen model: its refusal under t̃ if harmful, else
its own answer under t.
"""

import numpy as np

from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.samples import Samples
from rrs_jax.strategies.sft import build, extracted_targets, own_answers, refusals

__all__ = ["build", "extract"]


def extract(samples: Samples, frozen, config) -> Extracted:
    """The manifest's responses, and where there is none the frozen model's refusal or answer."""
    targets: list = [None] * len(samples)
    for i, row in enumerate(samples.rows):
        if row["response"]:
            targets[i] = [*frozen.text_ids(row["response"]), frozen.end_id][: config.sft.tokens]
    without = np.array([target is None for target in targets])
    harmful, benign = np.flatnonzero(without & samples.harmful), np.flatnonzero(without & ~samples.harmful)
    made = refusals(samples, frozen, config, harmful) if len(harmful) else []
    made += own_answers(frozen, config, benign) if len(benign) else []
    for i, answer in zip([*harmful, *benign], made, strict=True):
        targets[i] = answer
    return extracted_targets(samples, frozen, targets)
