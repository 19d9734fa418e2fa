"""Weights of the losses by kind of question and by whether it is only heard.

The fields `rrs.harmful_weight`, `rrs.harmful_audio_weight`, `rrs.rewrite_weight` and `rrs.keep_weight`.
"""

import jax
import numpy as np

from rrs_jax.config.prompts import prompt_pool
from rrs_jax.strategies.variants.variant import Materials, Variant, Wrapper


class Weights(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return bool((make_weights(samples, config) != 1).any())

    def wrap(self, strategy, materials: Materials) -> "Weighted":
        return Weighted(strategy, make_weights(self.samples, self.config))


class Weighted(Wrapper):
    """Losses times `weights`, float32 (N, prompts), by sample and prompt drawn."""

    def __init__(self, inner, weights: np.ndarray):
        super().__init__(inner)
        self.weights = weights

    def examples(self, indices, prompts=None, tails=None) -> dict:
        return self.inner.examples(indices, prompts, tails) | {"weight": self.weights[indices, prompts]}

    def row_losses(self, model, batch, audio_bank, examples, *, remat: str = "none") -> jax.Array:
        losses = self.inner.row_losses(model, batch, audio_bank, examples, remat=remat)
        return losses * examples["weight"]


def make_weights(samples, config) -> np.ndarray:
    """Factor of each sample's loss under each prompt of the pool, float32 (N, prompts)."""
    rrs, pool = config.rrs, prompt_pool(config.train)
    weights = np.ones((len(samples), len(pool)), np.float32)
    weights[samples.kept] = rrs.keep_weight
    weights[samples.harmful] = rrs.harmful_weight
    weights[samples.rewrites] = rrs.rewrite_weight
    if config.train.audio_share and rrs.harmful_audio_weight is not None:  # the last is the clip alone
        weights[samples.harmful, -1] = rrs.harmful_audio_weight
    weights[:, [prompt.stays for prompt in pool]] = rrs.keep_weight
    return weights
