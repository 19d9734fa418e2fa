"""Reshaping the representation space (section 4.2 of the paper)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.models.batch import Batch


@dataclasses.dataclass(frozen=True)
class RRS:
    """Squared distance of each representation to its frozen target.

    Attributes:
      targets: float32 (N, D), one row a sample (`targets_of`).
      reduction: `sum` over features, as the equation is written, or `mean`.
    """

    targets: np.ndarray
    reduction: str = "sum"

    def __post_init__(self):
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is sum or mean, not {self.reduction!r}")

    def examples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"target": self.targets[indices]}

    def row_losses(
        self, model: nnx.Module, batch: Batch, audio_bank: jax.Array, examples: dict[str, jax.Array], *, remat: str = "none"
    ) -> jax.Array:
        distance = model.representations(batch, audio_bank, remat=remat) - examples["target"]
        reduce = jnp.sum if self.reduction == "sum" else jnp.mean
        return reduce(distance * distance, axis=-1)


def targets_of(representations: np.ndarray, harmful: np.ndarray, safety_vector: np.ndarray) -> np.ndarray:
    """Equation 12: V0(d, t) (N, D) moved by the safety vector (D,), towards refusal where `harmful` (N,), else away."""
    sign = np.where(harmful, np.float32(1), np.float32(-1))[:, None]
    return np.asarray(representations, np.float32) + sign * np.asarray(safety_vector, np.float32)
