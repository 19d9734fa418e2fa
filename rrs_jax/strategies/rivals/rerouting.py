"""Representation rerouting after circuit breakers (Zou et al. 2024), on the same data, adapters and prompts
as RRS.

Behind chosen layers, at the last input token, harmful states are turned away from what the frozen model has
there, ReLU(cos(h, h0)), and benign ones kept, ‖h - h0‖₂. The original trains on harmful answers, at all of
their tokens, and moves from one term to the other in the course of training; here nothing harmful is written,
and the terms' weights stay the same.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.models.batch import Batch
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.rivals.layers import chosen_layers, first_adapted
from rrs_jax.strategies.samples import Samples, check_kinds

SHARES = (1 / 3, 2 / 3)  # of the depth: layers 10 and 20 of 32 in the original


@dataclasses.dataclass(frozen=True)
class Rerouting:
    """Attributes:
    harmful: bool (N,).
    layers: decoder layers behind which states are compared, averaged over several; () for those at `SHARES`.
    weight: factor of the harmful term.
    first: the first layer with an adapter.
    """

    harmful: np.ndarray
    layers: tuple
    weight: float
    first: int = 0
    tails: None = None

    @property
    def static(self) -> tuple:
        return self.layers, self.weight, self.first

    def examples(
        self, indices: np.ndarray, prompts: np.ndarray | None = None, tails: np.ndarray | None = None
    ) -> dict:
        return {"harmful": self.harmful[indices]}

    def row_losses(
        self,
        model: nnx.Module,
        batch: Batch,
        audio_bank: jax.Array,
        examples: dict[str, jax.Array],
        *,
        remat: str = "none",
    ) -> jax.Array:
        frozen = model.without_adapters()
        layers = tuple(chosen_layers(self.layers, model.config.text.num_hidden_layers, SHARES, self.first))
        now = model.layer_states(batch, audio_bank, layers, remat=remat)  # (B, layers, D)
        before = jax.lax.stop_gradient(frozen.layer_states(batch, audio_bank, layers))
        norms = jnp.linalg.norm(now, axis=-1) * jnp.linalg.norm(before, axis=-1)
        turned = self.weight * jax.nn.relu(jnp.sum(now * before, axis=-1) / norms)
        moved = jnp.sum((now - before) ** 2, axis=-1)
        # The root has no gradient at 0, which is where training begins.
        kept = jnp.where(moved > 0, jnp.sqrt(jnp.where(moved > 0, moved, 1)), 0)
        return jnp.where(examples["harmful"], turned.mean(axis=1), kept.mean(axis=1))


def check(samples: Samples, config) -> None:
    """Raises UserError where one of the loss's two terms would have no sample."""
    check_kinds(samples, ~samples.harmful, config.strategy)


def extract(samples: Samples, frozen, config) -> Extracted:
    """Nothing: the frozen model's states are computed in every step, under the very prompt."""
    check(samples, config)
    # So that a wrong one is told before training.
    chosen_layers(config.rivals.layers, frozen.num_layers, SHARES, first_adapted(config))
    return Extracted({})


def build(extracted: Extracted, samples: Samples, config) -> Rerouting:
    rivals = config.rivals
    return Rerouting(samples.harmful, tuple(rivals.layers), rivals.rerouting_weight, first_adapted(config))
