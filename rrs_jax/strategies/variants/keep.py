"""Samples whose target is what the vanilla model has under the very prompt they draw.

They are rows with the role "keep", and with `rrs.benign_target=keep` every benign one.
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T, prompt_pool
from rrs_jax.strategies.variants.variant import Materials, Variant, Wrapper


class Keep(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return bool(samples.keeping(config.rrs.benign_target).any())

    def __init__(self, samples, config):
        super().__init__(samples, config)
        self.keeping = np.flatnonzero(samples.keeping(config.rrs.benign_target))
        self.pool = len(prompt_pool(config.train))

    def prompts(self, frozen) -> list:
        kept = [frozen.prompt(i, PROMPT_T) for i in np.flatnonzero(self.samples.kept)]
        return kept + [frozen.pool_prompt(i, place) for i in self.keeping for place in range(self.pool)]

    def arrays(self, states, arrays) -> dict:
        """`kept` (kept samples, D), under t; `kept_prompts` (kept, pool, D), under each of the pool."""
        kept, by_prompt = np.split(states, [int(self.samples.kept.sum())])
        return {"kept": kept, "kept_prompts": by_prompt.reshape(len(self.keeping), self.pool, -1)}

    def prepare(self, materials: Materials) -> None:
        if self.samples.kept.any():
            materials.start[self.samples.kept] = materials.arrays["kept"]

    def wrap(self, strategy, materials: Materials) -> "Kept":
        states = materials.arrays["kept_prompts"]
        place = np.full((len(self.samples), self.pool), -1, np.int32)
        place[self.keeping] = np.arange(len(self.keeping) * self.pool).reshape(-1, self.pool)
        return Kept(strategy, states.reshape(-1, *states.shape[2:]), place)


class Kept(Wrapper):
    """Targets by the prompt drawn, where a sample and a prompt have a place in `states`.

    states: float32 (S, D) or (S, J, D); place: int32 (N, prompts), -1 where a sample has its own target.
    """

    def __init__(self, inner, states: np.ndarray, place: np.ndarray):
        super().__init__(inner)
        self.states, self.place = states, place

    def examples(self, indices, prompts=None, tails=None) -> dict:
        found = self.inner.examples(indices, prompts, tails)
        place = self.place[indices, prompts]
        chosen = (place >= 0).reshape(-1, *[1] * (found["target"].ndim - 1))
        return found | {"target": np.where(chosen, self.states[place], found["target"])}
