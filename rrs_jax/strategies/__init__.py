"""What a run optimises: a strategy turns a model and a batch into one loss for each row.

The step around it weighs and averages the rows, adds the penalty (`penalty.py`) and differentiates; so a
strategy needs to know nothing of devices, accumulation or optimisers.
"""

from typing import Protocol

import jax
import numpy as np
from flax import nnx

from rrs_jax.models.batch import Batch
from rrs_jax.strategies.rrs import RRS


class Strategy(Protocol):
    def examples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What the loss needs of these samples beside their prompts: arrays with a leading axis B."""

    def row_losses(
        self, model: nnx.Module, batch: Batch, audio_bank: jax.Array, examples: dict[str, jax.Array], *, remat: str
    ) -> jax.Array:
        """float32 (B,), differentiable in the model's LoRA parameters."""


STRATEGIES: dict[str, type] = {"rrs": RRS}
