"""Weights of the losses by kind of question, by whether it is only heard, and by what it resembles.

The fields `rrs.harmful_weight`, `rrs.harmful_audio_weight`, `rrs.rewrite_weight`, `rrs.keep_weight` and
`rrs.overlap_weight`.
"""

import jax
import numpy as np

from rrs_jax.config.prompts import prompt_pool
from rrs_jax.errors import UserError
from rrs_jax.strategies.variants.variant import Materials, Variant, Wrapper


class Weights(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return bool(config.rrs.overlap_weight or (make_weights(samples, config) != 1).any())

    def check(self) -> None:
        """Raises UserError where a harmful question has no harmless one to be compared with."""
        if not self.config.rrs.overlap_weight:
            return
        harmless = {self.samples.rows[i]["pair_id"] for i in np.flatnonzero(~self.samples.harmful)}
        if len(harmless) < 2:
            raise UserError(
                "rrs.overlap_weight: compares a harmful question with the harmless ones of other pairs, and"
                " the training questions have none; give 0, or more pairs."
            )

    def wrap(self, strategy, materials: Materials) -> "Weighted":
        weights = make_weights(self.samples, self.config)
        if share := self.config.rrs.overlap_weight:
            moves = [not prompt.stays for prompt in prompt_pool(self.config.train)]
            factors = 1 - share * overlaps(self.samples, materials.arrays)
            weights[np.ix_(self.samples.harmful, moves)] *= factors[:, None]
        return Weighted(strategy, weights)


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


def overlaps(samples, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Highest cosine of each harmful question's state and those of the harmless questions of other pairs,
    float32 (harmful,); 0 where all are negative.

    The states are the vanilla model's under t, less the mean of all questions. After arXiv 2511.19009.
    """
    states = np.zeros((len(samples), arrays["harmful"].shape[1]))
    states[samples.harmful], states[samples.mirrored] = arrays["harmful"], arrays["benign"]
    if samples.kept.any():
        states[samples.kept] = arrays["kept"]
    states -= states.mean(axis=0)
    states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    pairs = np.array([row["pair_id"] for row in samples.rows])
    cosines = states[samples.harmful] @ states[~samples.harmful].T
    same = pairs[samples.harmful][:, None] == pairs[~samples.harmful]
    return np.where(same, 0, cosines).max(axis=1, initial=0).astype(np.float32)


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
