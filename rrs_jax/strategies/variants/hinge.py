"""Rewrites pulled only while a refusal token is likely (`rrs.benign_target=hinge`, `rrs.margin`)."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.strategies.variants.positions import SeveralPositions
from rrs_jax.strategies.variants.variant import Materials, Variant, Wrapper


class Hinge(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return config.rrs.benign_target == "hinge" and bool(samples.mirrored.any())

    def wrap(self, strategy, materials: Materials) -> "Hinged":
        """Raises UserError for a safety vector that does not raise the refusal token's logit."""
        gains = materials.vectors @ materials.arrays["head_row"]
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.linalg.norm(materials.vectors, axis=1) / gains
        if not (scale[~self.samples.harmful] > 0).all():
            raise UserError(
                "rrs.benign_target: the safety vector does not raise the refusal token's logit, so that hinge"
                " has no direction; give keep or mirror, or another rrs.top_m."
            )
        token_ids = tuple(json.loads(materials.metadata["refusal_token_ids"]))
        scale = np.where(self.samples.mirrored, scale, 0).astype(np.float32)
        return Hinged(strategy, token_ids, self.config.rrs.margin, scale)


class Hinged(Wrapper):
    """The first position's distance of samples with a `scale` above 0 is `pull`.

    Attributes:
      token_ids, margin: the refusal tokens, and their log-odds above which a sample is pulled.
      scale: float32 (N,), the safety vector's length over the change of logit that the whole vector makes.
    """

    def __init__(self, inner, token_ids: tuple[int, ...], margin: float, scale: np.ndarray):
        super().__init__(inner)
        self.token_ids, self.margin, self.scale = token_ids, margin, scale
        self.several = isinstance(inner, SeveralPositions)

    @property
    def static(self) -> tuple:
        return *super().static, self.token_ids, self.margin

    def examples(self, indices, prompts=None, tails=None) -> dict:
        return self.inner.examples(indices, prompts, tails) | {"hinge_scale": self.scale[indices]}

    def row_losses(self, model, batch, audio_bank, examples, *, remat: str = "none") -> jax.Array:
        states = self.inner.states(model, batch, audio_bank, examples, remat)
        losses, scale = self.inner.distances(states, examples), examples["hinge_scale"]
        if not self.several:
            return jnp.where(scale > 0, self.pull(model, states, scale), losses)
        first = jnp.where(scale > 0, self.pull(model, states[:, 0], scale), losses[:, 0])
        return self.inner.mean(losses.at[:, 0].set(first), examples)

    def pull(self, model, states: jax.Array, scale: jax.Array) -> jax.Array:
        """Squared distance (B,), along the safety vector and to first order, to where the tokens' log-odds
        are
        -margin; 0 beyond."""
        logits = model.logits(states)
        ids = jnp.asarray(self.token_ids)
        refusing = jax.nn.logsumexp(logits[:, ids], axis=-1)
        answering = jax.nn.logsumexp(logits.at[:, ids].set(-jnp.inf), axis=-1)
        excess = jax.nn.relu(refusing - answering + self.margin) * scale
        return excess**2 / (1 if self._reduction() == "sum" else states.shape[-1])

    def _reduction(self) -> str:
        return self.inner.inner.reduction if self.several else self.inner.reduction
