"""Targets that start on the way from what the vanilla model has where a question is heard to where it is
read.

The field `rrs.read_share`: training then also teaches to hear the words.
"""

import numpy as np

from rrs_jax.config.prompts import PROMPT_T, prompt_pool
from rrs_jax.strategies.variants.variant import Materials, Variant


class ReadShare(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return bool(config.rrs.read_share)

    def prompts(self, frozen) -> list:
        """Every question in writing beside t, then the kept samples' beside each text of the pool."""
        keeping = np.flatnonzero(self.samples.keeping(self.config.rrs.benign_target))
        pool = prompt_pool(self.config.train)
        read = [frozen.written_prompt(i, PROMPT_T) for i in range(len(self.samples))]
        return read + [frozen.written_prompt(i, prompt.text) for i in keeping for prompt in pool]

    def arrays(self, states, arrays) -> dict:
        """`read` (N, D), and `kept_prompts` as far on their way."""
        read, by_prompt = np.split(states, [len(self.samples)])
        found = {"read": read}
        if len(by_prompt):
            heard = arrays["kept_prompts"]
            found["kept_prompts"] = self._towards(heard, by_prompt.reshape(heard.shape))
        return found

    def prepare(self, materials: Materials) -> None:
        materials.start = self._towards(materials.start, materials.arrays["read"])

    def _towards(self, heard: np.ndarray, read: np.ndarray) -> np.ndarray:
        return heard + np.float32(self.config.rrs.read_share) * (read - heard)
