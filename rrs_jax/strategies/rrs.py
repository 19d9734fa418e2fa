"""Reshaping the representation space (section 4.2 of the paper), and what was added to it
(docs/strategies.md)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.models.batch import Batch
from rrs_jax.strategies.rrs_targets import extract, make_targets, read_materials

__all__ = ["RRS", "Hinge", "build", "extract"]


@dataclasses.dataclass(frozen=True)
class Hinge:
    """Log-odds of the refusal tokens, as the first ones of the answer, above which a hinged sample is
    pulled."""

    token_ids: tuple[int, ...]
    margin: float


@dataclasses.dataclass(frozen=True)
class RRS:
    """Squared distance of each representation to its frozen target.

    Attributes:
      targets: float32 (N, D), one row a sample; (N, K, D) for K positions, the first of them the prompt's
        last.
      reduction: `sum` over features, as the equation is written, or `mean`. Positions are averaged.
      kept: float32 (M, prompts, D) or (M, prompts, K, D), what the frozen model has under each prompt of the
        pool.
      kept_place: int32 (N,), a sample's place in `kept`, which then is its target; -1 for one of `targets`.
      weights: float32 (N, prompts), factors of the samples' losses under each prompt of the pool.
      tails, positions: token ids behind the prompts, and bool (N, K) which positions a sample has.
      hinge, hinge_scale: where `hinge_scale` (N,) is above 0, the first position's distance is
        `hinge_distance`.
    """

    targets: np.ndarray
    reduction: str = "sum"
    kept: np.ndarray | None = None
    kept_place: np.ndarray | None = None
    weights: np.ndarray | None = None
    tails: Sequence[Sequence[Sequence[int]]] | None = None
    positions: np.ndarray | None = None
    hinge: Hinge | None = None
    hinge_scale: np.ndarray | None = None

    def __post_init__(self):
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is sum or mean, not {self.reduction!r}")

    @property
    def static(self) -> tuple:
        places = None if self.positions is None else self.positions.shape[1]
        return self.reduction, places, self.weights is not None, self.hinge

    def examples(
        self, indices: np.ndarray, prompts: np.ndarray | None = None, tails: np.ndarray | None = None
    ) -> dict:
        target = self.targets[indices]
        if self.kept is not None:
            place = self.kept_place[indices]
            chosen = (place >= 0).reshape(-1, *[1] * (target.ndim - 1))
            target = np.where(chosen, self.kept[place, prompts], target)
        found = {"target": target}
        if self.positions is not None:
            found["positions"] = self.positions[indices]
            found["tail"] = np.array([len(self.tails[i][0]) for i in indices], np.int32)
        if self.weights is not None:
            found["weight"] = self.weights[indices, prompts]
        if self.hinge is not None:
            found["hinge_scale"] = self.hinge_scale[indices]
        return found

    def row_losses(
        self,
        model: nnx.Module,
        batch: Batch,
        audio_bank: jax.Array,
        examples: dict[str, jax.Array],
        *,
        remat: str = "none",
    ) -> jax.Array:
        reduce = jnp.sum if self.reduction == "sum" else jnp.mean
        if self.positions is None:
            states = model.representations(batch, audio_bank, remat=remat)
        else:
            first = batch.lengths - 1 - examples["tail"]
            at = first[:, None] + jnp.arange(self.positions.shape[1])
            states = model.states_at(
                batch, audio_bank, jnp.minimum(at, batch.lengths[:, None] - 1), remat=remat
            )
        distance = states - examples["target"]
        losses = reduce(distance * distance, axis=-1)
        if self.hinge is not None:
            several = self.positions is not None
            pull = self._hinge_distance(model, states[:, 0] if several else states, examples["hinge_scale"])
            hinged = examples["hinge_scale"] > 0
            first = jnp.where(hinged, pull, losses[:, 0] if several else losses)
            losses = losses.at[:, 0].set(first) if several else first
        if self.positions is not None:
            real = examples["positions"].astype(jnp.float32)
            losses = jnp.sum(losses * real, axis=1) / real.sum(axis=1)
        return losses * examples["weight"] if self.weights is not None else losses

    def _hinge_distance(self, model: nnx.Module, states: jax.Array, scale: jax.Array) -> jax.Array:
        """Squared distance, along the safety vector and to first order, to where the tokens' log-odds are
        -margin; 0 beyond. `scale` (B,) is the vector's length over the change of logit that the whole vector
        makes."""
        logits = model.logits(states)
        ids = jnp.asarray(self.hinge.token_ids)
        refusing = jax.nn.logsumexp(logits[:, ids], axis=-1)
        answering = jax.nn.logsumexp(logits.at[:, ids].set(-jnp.inf), axis=-1)
        excess = jax.nn.relu(refusing - answering + self.hinge.margin) * scale
        return excess**2 / (1 if self.reduction == "sum" else states.shape[-1])


def make_weights(work) -> np.ndarray:
    """float32 (N, prompts): what a sample's loss counts under each prompt of the pool."""
    rrs = work.config.rrs
    weights = np.ones((len(work.harmful), work.pool_size), np.float32)
    weights[work.kept] = rrs.keep_weight
    weights[work.harmful] = rrs.harmful_weight
    weights[work.rewrites] = rrs.rewrite_weight
    if (
        work.config.train.audio_share and rrs.harmful_audio_weight is not None
    ):  # the last prompt is the clip alone
        weights[work.harmful, -1] = rrs.harmful_audio_weight
    return weights


def build(work) -> RRS:
    """The loss of a run whose `extract` is done."""
    config, materials = work.config, read_materials(work)
    targets = make_targets(config, materials, work.harmful)
    rrs = config.rrs
    kept = work.kept | (~work.harmful & (rrs.benign_target == "keep"))
    place = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    hinged = ~work.harmful & ~kept & (rrs.benign_target == "hinge")
    weights = make_weights(work)
    return RRS(
        targets,
        config.loss.reduction,
        kept=materials.kept_prompts if kept.any() else None,
        kept_place=place if kept.any() else None,
        weights=weights if (weights != 1).any() else None,
        tails=materials.tails,
        positions=materials.positions,
        hinge=Hinge(tuple(work.refusal_ids), rrs.margin) if hinged.any() else None,
        hinge_scale=np.where(hinged, materials.hinge_scale, 0).astype(np.float32) if hinged.any() else None,
    )
