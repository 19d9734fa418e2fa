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
        pool = prompt_pool(config.train)
        staying = [(place, prompt.spoken) for place, prompt in enumerate(pool) if prompt.stays]
        self.pool = len(pool)
        self.places = {
            "kept_text": [place for place, spoken in staying if not spoken],
            "kept_tasks": [place for place, spoken in staying if spoken],
        }
        self.moved = np.flatnonzero(~samples.keeping(config.rrs.benign_target))  # `Keep` has the others

    def prompts(self, frozen) -> list:
        return [
            frozen.pool_prompt(i, place)
            for places in self.places.values()
            for i in self.moved
            for place in places
        ]

    def arrays(self, states, arrays) -> dict:
        """`kept_text` and `kept_tasks`, each (moved samples, its prompts, D)."""
        ends = np.cumsum([len(self.moved) * len(places) for places in self.places.values()])
        parts = np.split(states, ends[:-1])
        return {
            name: part.reshape(len(self.moved), len(places), -1)
            for (name, places), part in zip(self.places.items(), parts, strict=True)
            if places
        }

    def wrap(self, strategy, materials: Materials) -> Kept:
        place, states, count = np.full((len(self.samples), self.pool), -1, np.int32), [], 0
        for name, places in self.places.items():
            if not places:
                continue
            own = materials.arrays[name]
            numbers = np.arange(own.shape[0] * own.shape[1]).reshape(own.shape[:2])
            place[np.ix_(self.moved, places)] = count + numbers
            states.append(own.reshape(-1, own.shape[2]))
            count += numbers.size
        return Kept(strategy, np.concatenate(states), place)
