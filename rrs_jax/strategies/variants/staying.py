"""Prompts under which every question keeps what the vanilla model has there: `train.kept_text_share` and
`train.kept_task_share`.

What is refused and answered in writing is to stay so while the heard questions move, and so is what else can
be asked of a clip than to answer it: nobody is harmed by a transcription. Such a prompt has no loss at the
start.
"""

import numpy as np

from rrs_jax.config.prompts import prompt_pool
from rrs_jax.strategies.variants.keep import Kept
from rrs_jax.strategies.variants.variant import Materials, Variant


class Staying(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return any(prompt.stays for prompt in prompt_pool(config.train))

    def __init__(self, samples, config):
        super().__init__(samples, config)
        self.pool = prompt_pool(config.train)
        self.places = [place for place, prompt in enumerate(self.pool) if prompt.stays]
        self.moved = np.flatnonzero(~samples.keeping(config.rrs.benign_target))  # `Keep` has the others

    def prompts(self, frozen) -> list:
        return [frozen.pool_prompt(i, place) for i in self.moved for place in self.places]

    def arrays(self, states, arrays) -> dict:
        """`staying` (moved samples, prompts that stay, D)."""
        return {"staying": states.reshape(len(self.moved), len(self.places), -1)}

    def wrap(self, strategy, materials: Materials) -> Kept:
        states = materials.arrays["staying"]
        place = np.full((len(self.samples), len(self.pool)), -1, np.int32)
        place[np.ix_(self.moved, self.places)] = np.arange(states.shape[0] * states.shape[1]).reshape(
            states.shape[:2]
        )
        return Kept(strategy, states.reshape(-1, states.shape[2]), place)
