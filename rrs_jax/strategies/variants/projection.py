"""The mean change without its part along the first principal directions of benign questions
(`rrs.project`)."""

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.strategies.variants.variant import Variant
from rrs_jax.strategies.variants.whitening import all_benign


class Projection(Variant):
    turns = True

    @classmethod
    def asked(cls, samples, config) -> bool:
        return bool(config.rrs.project)

    def check(self) -> None:
        directions, benign = self.config.rrs.project, np.sum(~self.samples.harmful)
        if directions >= benign:
            raise UserError(
                f"rrs.project: is {directions} with {benign} benign questions; give fewer directions."
            )

    def turn(self, delta, arrays) -> np.ndarray:
        return project_out(delta, all_benign(arrays), self.config.rrs.project)


def project_out(delta: np.ndarray, benign: np.ndarray, directions: int) -> np.ndarray:
    """δ (D,) without its part along the first `directions` principal directions of `benign` (N, D)."""
    centred = np.asarray(benign, np.float64) - np.mean(benign, axis=0, dtype=np.float64)
    _, _, principal = np.linalg.svd(centred, full_matrices=False)
    principal = principal[:directions]
    return (delta - principal.T @ (principal @ np.asarray(delta, np.float64))).astype(np.float32)
