"""The mean change turned by the inverse covariance of benign representations (`rrs.whiten`)."""

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.strategies.variants.variant import Variant


class Whitening(Variant):
    turns = True

    @classmethod
    def asked(cls, samples, config) -> bool:
        return config.rrs.whiten is not None

    def check(self) -> None:
        if np.sum(~self.samples.harmful) < 2:
            raise UserError("rrs.whiten: one benign question has no covariance; add some, or give None.")

    def turn(self, delta, arrays) -> np.ndarray:
        return whiten(delta, all_benign(arrays), self.config.rrs.whiten)


def all_benign(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Representations of the mirrored and of the kept samples, (N, D)."""
    return np.concatenate([arrays["benign"], arrays["kept"]]) if "kept" in arrays else arrays["benign"]


def whiten(delta: np.ndarray, benign: np.ndarray, shrinkage: float) -> np.ndarray:
    """Σ⁻¹δ at δ's length, (D,): the direction that best tells refused from benign, and not along what benign
    questions differ in. Σ is the covariance of `benign` (N, D), drawn by `shrinkage` towards a multiple of
    the identity."""
    centred = np.asarray(benign, np.float64) - np.mean(benign, axis=0, dtype=np.float64)
    covariance = centred.T @ centred / max(len(centred) - 1, 1)
    width = len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / width * np.eye(width)
    direction = np.linalg.solve(shrunk, np.asarray(delta, np.float64))
    return (direction * np.linalg.norm(delta) / np.linalg.norm(direction)).astype(np.float32)
