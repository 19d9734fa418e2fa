"""Models that answer the evaluation's questions: one, or several with a choice for each prompt."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx

from rrs_jax.inputs.batching import EncodedPrompt


@dataclasses.dataclass(frozen=True)
class Served:
    """Attributes:
    models: they share the frozen arrays.
    made_by: JSON values that say what decides the answers beside model folder, sampling and seed.
    system: a system prompt in place of the model's own.
    choose: (prompts, audio bank's array) to which of the models answers each, int (prompts,); None for the
      only one.
    """

    models: Sequence[nnx.Module]
    made_by: dict
    system: str | None = None
    choose: Callable[[Sequence[EncodedPrompt], jax.Array], np.ndarray] | None = None
