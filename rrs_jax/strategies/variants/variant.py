"""The seam between RRS and what it can be given beyond the paper: hooks whose defaults are the paper's."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from rrs_jax.inputs.batching import EncodedPrompt
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.samples import Samples


class Materials:
    """Arrays that targets are made of, in the order of the N samples.

    Attributes:
      arrays, metadata: what `rrs_jax.strategies.rrs.extract` kept.
      start: V0(d, t), float32 (N, D).
      refused: V0(d, t̃) of harmful samples, float32 (N, D), 0 elsewhere.
      vectors: the safety vector of each sample, float32 (N, D).
    """

    def __init__(self, samples: Samples, extracted: Extracted):
        self.arrays, self.metadata = copy.copy(extracted.content), extracted.metadata
        shape = len(samples), self.arrays["harmful"].shape[1]
        self.start, self.refused = np.zeros((2, *shape), np.float32)
        self.start[samples.harmful] = self.arrays["harmful"]
        self.start[samples.mirrored] = self.arrays["benign"]
        self.refused[samples.harmful] = self.arrays["harmful_refusal"]
        self.vectors = np.broadcast_to(self.arrays["safety_vector"], shape)


class Variant(ABC):
    """One addition to RRS. A subclass overrides the hooks that it needs, in the order in which they are
    called.

    turns: whether `turn` changes the mean change ΔV̄.
    """

    turns = False

    def __init__(self, samples: Samples, config):
        self.samples, self.config = samples, config

    @classmethod
    @abstractmethod
    def asked(cls, samples: Samples, config) -> bool:
        """True where the config, or the samples' roles, ask for it."""

    def check(self) -> None:  # noqa: B027 - by default there is nothing to refuse
        """Raises UserError, before anything is computed, for samples that the variant cannot do with."""

    def prompts(self, frozen) -> list[EncodedPrompt]:
        """Further prompts whose representations are extracted."""
        return []

    def arrays(self, states: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays to keep, from the states of `prompts` and the arrays so far."""
        return {}

    def turn(self, delta: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Another mean change ΔV̄ (D,), before features are selected."""
        return delta

    def vectors(self, arrays: dict[str, np.ndarray], find_vector: Callable) -> dict[str, np.ndarray]:
        """Arrays with further safety vectors; find_vector(refused, benign) gives one."""
        return {}

    def prepare(self, materials: Materials) -> None:  # noqa: B027 - by default nothing changes
        """Changes what targets are made of."""

    def change(self, targets: np.ndarray, materials: Materials) -> np.ndarray:
        """Other targets (N, D) than equation 12's."""
        return targets

    def wrap(self, strategy, materials: Materials):
        """The strategy with another loss, or other targets for the prompts that are drawn."""
        return strategy


class Wrapper:
    """A strategy around another one; a subclass overrides what it changes."""

    def __init__(self, inner):
        self.inner, self.tails = inner, inner.tails

    @property
    def static(self) -> tuple:
        return type(self.inner), self.inner.static

    def examples(self, indices, prompts=None, tails=None) -> dict:
        return self.inner.examples(indices, prompts, tails)

    def row_losses(self, model, batch, audio_bank, examples, *, remat: str = "none"):
        return self.inner.row_losses(model, batch, audio_bank, examples, remat=remat)
