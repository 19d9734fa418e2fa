"""What a run optimises: a strategy turns a model and a batch into one loss for each row.

The step around it weighs and averages the rows, adds the penalty (`penalty.py`) and differentiates; so a
strategy needs to know nothing of devices, accumulation or optimisers.

A strategy's file, named in `rrs_jax.config.strategy_table`, has two functions. `extract(work) -> facts` asks
the frozen model for what the loss needs (representations, responses) and writes it into the run folder;
`build(work)` reads it and gives the `Strategy`. One that trains nothing has `serve(work) ->
rrs_jax.strategies.served.Serving` in place of `build`. All get a `rrs_jax.run.training_set.Work`: the run's
samples, prompts and frozen model.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from flax import nnx

from rrs_jax.models.batch import Batch


class Strategy(Protocol):
    tails: Sequence[Sequence[Sequence[int]]] | None
    """Token ids that stand behind a sample's prompt: for each sample one tail or several, of which every step draws
    one; None for no tails."""

    @property
    def static(self) -> tuple:
        """All that `row_losses` reads of the strategy itself, hashable: with the same, compiled steps serve
        again."""

    def examples(self, indices: np.ndarray, prompts: np.ndarray, tails: np.ndarray) -> dict[str, np.ndarray]:
        """What the loss needs of these samples (B,) beside their inputs: arrays with a leading axis B.

        prompts, tails: int (B,), which of the pool and which of its tails each sample drew.
        """

    def row_losses(
        self,
        model: nnx.Module,
        batch: Batch,
        audio_bank: jax.Array,
        examples: dict[str, jax.Array],
        *,
        remat: str,
    ) -> jax.Array:
        """float32 (B,), differentiable in the model's LoRA parameters."""
