"""Harmful targets with the selected features of the question's own refused state (`rrs.target=own`)."""

import numpy as np

from rrs_jax.strategies.variants.variant import Materials, Variant


class OwnTargets(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return config.rrs.target == "own"

    def change(self, targets, materials: Materials) -> np.ndarray:
        own = np.where(materials.vectors != 0, materials.refused, materials.start)
        return np.where(self.samples.harmful[:, None], own, targets)
