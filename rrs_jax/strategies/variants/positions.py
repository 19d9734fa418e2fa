"""Targets at several positions: the prompt's last, then those behind the first tokens of an answer
(`rrs.positions`).

The answer is the vanilla model's own: a harmful question's refusal under t̃, another question's answer under
t. There the vanilla model's state is the target.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.config.prompts import PROMPT_T, prompt_pool
from rrs_jax.strategies.variants.variant import Materials, Variant


class Positions(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return config.rrs.positions > 1

    def __init__(self, samples, config):
        super().__init__(samples, config)
        self.keeping = np.flatnonzero(samples.keeping(config.rrs.benign_target))
        self.moved = np.setdiff1d(np.arange(len(samples)), self.keeping)
        self.pool = len(prompt_pool(config.train))
        self.texts = [config.rrs.refusal_prompt if harmful else PROMPT_T for harmful in samples.harmful]

    def prompts(self, frozen) -> list:
        """Prompts with the first one, two, ... tokens of their tails behind them: the moved samples' under t̃
        or t, then the kept samples' under each of the pool. Past an answer's end the whole answer stands
        in."""
        length = self.config.rrs.positions - 1
        asked = [frozen.prompt(i, text) for i, text in enumerate(self.texts)]
        self.tails = np.full((len(asked), length), -1, np.int32)
        for row, answer in zip(self.tails, frozen.answers(asked, length), strict=True):
            row[: len(answer)] = answer
        bases = [(i, frozen.prompt(i, self.texts[i])) for i in self.moved]
        bases += [(i, frozen.pool_prompt(i, place)) for i in self.keeping for place in range(self.pool)]
        found = []
        for i, (ids, offsets, counts) in bases:
            tail = [int(token) for token in self.tails[i] if token >= 0]
            found += [(ids + tail[: place + 1], offsets, counts) for place in range(length)]
        return found

    def arrays(self, states, arrays) -> dict:
        """`tails` int32 (N, K - 1), -1 past an answer's end; `deeper`, the states of `prompts`."""
        return {"tails": self.tails, "deeper": states}

    def prepare(self, materials: Materials) -> None:
        """Gives the kept samples' states their further positions."""
        arrays = materials.arrays
        later, width = arrays["tails"].shape[1], materials.start.shape[1]
        moved, own = np.split(arrays["deeper"], [len(self.moved) * later])
        self.deeper = np.zeros((len(self.samples), later, width), np.float32)
        self.deeper[self.moved] = moved.reshape(len(self.moved), later, width)
        if "kept_prompts" in arrays:
            first = arrays["kept_prompts"]
            own = own.reshape(*first.shape[:2], later, width)
            arrays["kept_prompts"] = np.concatenate([first[:, :, None], own], axis=2)

    def wrap(self, strategy, materials: Materials) -> "SeveralPositions":
        lengths = (materials.arrays["tails"] >= 0).sum(axis=1)
        tails = [[row[:n].tolist()] for row, n in zip(materials.arrays["tails"], lengths, strict=True)]
        real = np.arange(materials.arrays["tails"].shape[1] + 1) <= lengths[:, None]
        targets = np.concatenate([strategy.targets[:, None], self.deeper], axis=1)
        return SeveralPositions(type(strategy)(targets, strategy.reduction), tails, real)


@dataclasses.dataclass(frozen=True)
class SeveralPositions:
    """Distances at J positions, averaged over those that a sample has.

    Attributes:
      inner: RRS with targets (N, J, D).
      tails: token ids behind each sample's prompt, one tail a sample.
      real: bool (N, J), which positions a sample has.
    """

    inner: object
    tails: list
    real: np.ndarray

    @property
    def static(self) -> tuple:
        return *self.inner.static, self.real.shape[1]

    def examples(self, indices, prompts=None, tails=None) -> dict:
        lengths = np.array([len(self.tails[i][0]) for i in indices], np.int32)
        return self.inner.examples(indices) | {"positions": self.real[indices], "tail": lengths}

    def row_losses(self, model, batch, audio_bank, examples, *, remat: str = "none") -> jax.Array:
        states = self.states(model, batch, audio_bank, examples, remat)
        return self.mean(self.distances(states, examples), examples)

    def states(self, model, batch, audio_bank, examples, remat: str) -> jax.Array:
        """States at the prompt's last position and behind the tail's tokens, (B, J, D)."""
        first = batch.lengths - 1 - examples["tail"]
        at = first[:, None] + jnp.arange(self.real.shape[1])
        return model.states_at(batch, audio_bank, jnp.minimum(at, batch.lengths[:, None] - 1), remat=remat)

    def distances(self, states: jax.Array, examples) -> jax.Array:
        """Squared distances, (B, J)."""
        return self.inner.distances(states, examples)

    def mean(self, losses: jax.Array, examples) -> jax.Array:
        """Means of (B, J) over the positions that a row has, (B,)."""
        real = examples["positions"].astype(jnp.float32)
        return jnp.sum(losses * real, axis=1) / real.sum(axis=1)
