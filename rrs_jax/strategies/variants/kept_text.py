"""Questions in writing whose target is what the vanilla model has under that very prompt
(`train.kept_text_share`).

What is refused and answered in writing is to stay so while the heard questions move. A written question has
no loss at the start.
"""

import numpy as np

from rrs_jax.config.prompts import prompt_pool
from rrs_jax.strategies.variants.keep import Kept
from rrs_jax.strategies.variants.variant import Materials, Variant


class KeptText(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return bool(config.train.kept_text_share)

    def __init__(self, samples, config):
        super().__init__(samples, config)
        self.pool = prompt_pool(config.train)
        self.places = [place for place, prompt in enumerate(self.pool) if prompt.stays]
        self.moved = np.flatnonzero(~samples.keeping(config.rrs.benign_target))  # `Keep` has the others

    def prompts(self, frozen) -> list:
        return [frozen.pool_prompt(i, place) for i in self.moved for place in self.places]

    def arrays(self, states, arrays) -> dict:
        """`kept_text` (moved samples, prompts that stay, D)."""
        return {"kept_text": states.reshape(len(self.moved), len(self.places), -1)}

    def wrap(self, strategy, materials: Materials) -> Kept:
        states = materials.arrays["kept_text"]
        place = np.full((len(self.samples), len(self.pool)), -1, np.int32)
        place[np.ix_(self.moved, self.places)] = np.arange(states.shape[0] * states.shape[1]).reshape(
            states.shape[:2]
        )
        return Kept(strategy, states.reshape(-1, states.shape[2]), place)
