"""The mean change between a harmful question and its rewrite in place of ΔV̄ (`rrs.direction=twins`).

Twins have topic and wording in common, so that what they differ in is the harm. Refused and benign questions,
of which equation 9 takes the means, differ in the prompt as well.
"""

from collections import defaultdict

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.strategies.variants.variant import Variant


class TwinDirection(Variant):
    turns = True

    @classmethod
    def asked(cls, samples, config) -> bool:
        return config.rrs.direction == "twins"

    def check(self) -> None:
        if not self.samples.rewrites.any():
            raise UserError(
                "rrs.direction: twins needs harmful questions with rewrites, which share a pair_id; complete"
                " the manifest or give refusal_prompt."
            )

    def turn(self, delta, arrays) -> np.ndarray:
        """The mean over pairs of V0(harmful, t) − V0(rewrite, t), at the length of δ."""
        states = {"harmful": defaultdict(list), "benign": defaultdict(list)}
        for name, mask in (("harmful", self.samples.harmful), ("benign", self.samples.mirrored)):
            for place, state in zip(np.flatnonzero(mask), arrays[name], strict=True):
                states[name][self.samples.rows[place]["pair_id"]].append(state)
        changes = [
            np.mean(states["harmful"][pair], axis=0, dtype=np.float64)
            - np.mean(states["benign"][pair], axis=0, dtype=np.float64)
            for pair in states["harmful"]
            if pair in states["benign"]
        ]
        change = np.mean(changes, axis=0)
        return (change * np.linalg.norm(delta) / np.linalg.norm(change)).astype(np.float32)
