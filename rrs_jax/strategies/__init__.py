"""Training objectives: samples and what the frozen model makes of them, to one loss for each row of a step.

A strategy's module, named in `rrs_jax.config.strategy_table`, sees data alone, never a run, a folder or a
process:

    extract(samples, frozen, config) -> Extracted    what the loss needs of the frozen model; the run keeps it
    build(extracted, samples, config) -> Strategy    the loss
    check(samples, config)                           raises UserError for samples that it cannot do with; one
                                                     that does with all need not have it

One that trains nothing has `serve(extracted, samples, frozen, config) -> Served` in place of `build`. The
step around a strategy (`rrs_jax.train.step`) weighs and averages the rows, adds the penalty and
differentiates.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from flax import nnx

from rrs_jax.equations import SafetyVector
from rrs_jax.inputs.batching import EncodedPrompt
from rrs_jax.models.batch import Batch


class Strategy(Protocol):
    """A loss for each row of a step.

    Attributes:
      tails: token ids that stand behind a sample's prompt: for each of the N samples one tail or several, of
        which every step draws one; None for no tails.
    """

    tails: Sequence[Sequence[Sequence[int]]] | None

    @property
    def static(self) -> tuple:
        """All that `row_losses` reads of the strategy itself, hashable: steps compiled with the same serve
        again."""

    def examples(self, indices: np.ndarray, prompts: np.ndarray, tails: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays (B, ...) that the loss of these samples needs beside their inputs.

        indices int (B,): samples; prompts, tails int (B,): which of the pool's prompts and of its tails each
        drew.
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
        """Losses of the rows, float32 (B,), differentiable in the model's LoRA parameters."""


class FrozenModel(Protocol):
    """The model before training, asked about the training samples; `rrs_jax.run.vanilla_model` has a run's.

    Attributes:
      model: the module, without adapters.
      num_layers: layers of its decoder.
      refusal_ids: token ids of `rrs.refusal_tokens`; the first is the refusal token.
      end_id: the token that ends an answer.
      closing_tokens: tokens that the chat template writes behind a user's turn, up to the answer.
    """

    model: nnx.Module
    num_layers: int
    refusal_ids: list[int]
    end_id: int
    closing_tokens: int

    def prompt(self, sample: int, text: str | None) -> EncodedPrompt:
        """The sample's clip beside `text`, or alone where it is None."""

    def written_prompt(self, sample: int, text: str | None) -> EncodedPrompt:
        """The sample's question in writing beside `text`, or alone."""

    def pool_prompt(self, sample: int, place: int) -> EncodedPrompt:
        """Prompt `place` of the run's pool (`rrs_jax.config.prompts.prompt_pool`)."""

    def representations(self, prompts: Sequence[EncodedPrompt]) -> np.ndarray:
        """Final-norm states at each prompt's last token, float32 (len(prompts), D)."""

    def layer_states(
        self, prompts: Sequence[EncodedPrompt], layers: Sequence[int], audio_bank: jax.Array | None = None
    ) -> np.ndarray:
        """States at each prompt's last token behind layers, float32 (len(prompts), len(layers), D).

        audio_bank: the array that the prompts' clips lie on, where it is not the training samples'.
        """

    def first_tokens(self, states: np.ndarray) -> np.ndarray:
        """Likeliest next token of each representation (N, D), int (N,)."""

    def answers(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[list[int]]:
        """Greedy answers as token ids, at most so many, without an end token."""

    def safety_vector(
        self, harmful_refusal: np.ndarray, benign: np.ndarray, *selection: float | str
    ) -> SafetyVector:
        """`rrs_jax.equations.safety_vector` with this model's output head and refusal tokens, as NumPy
        arrays; selection: its `top_m`, `rule` and `dtype`."""

    def safety_features(self, delta_mean: np.ndarray, *selection: float | str) -> SafetyVector:
        """`rrs_jax.equations.safety_features`, likewise."""

    def refusal_row(self) -> np.ndarray:
        """`rrs_jax.equations.refusal_row`, float32 (D,)."""

    def text_ids(self, text: str) -> list[int]:
        """Token ids of an answer's text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's token ids."""

    def steered(self, layers: Sequence[int], vectors: np.ndarray) -> nnx.Module:
        """The model with `vectors` (len(layers), D) added behind layers, at every position."""
