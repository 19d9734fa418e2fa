"""Supervised fine-tuning: cross-entropy on chosen tokens of an answer (sections 5.1 and 5.2 of the paper).

The strategies `sft_full`, `sft_shallow` and `sft_deep` differ in what they have the frozen model or the data
say, and in where the answer begins. What they decide is written to `RUN/sft_targets.jsonl`, one sample a
line.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.models.batch import Batch
from rrs_jax.models.positions import map_positions
from rrs_jax.progress import say
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.samples import Samples

REFUSAL = (  # where the frozen model does not refuse even when told to
    "I'm sorry, but I cannot help with that."
)


@dataclasses.dataclass(frozen=True)
class SFT:
    """Mean cross-entropy over the target tokens of each sample.

    Attributes:
      targets: token ids of each of the N samples' answer, not empty.
      prefills: for each sample one list of token ids or several, of which a step draws one; it stands between
        prompt and answer and has no loss of its own.
    """

    targets: Sequence[Sequence[int]]
    prefills: Sequence[Sequence[Sequence[int]]]

    @property
    def tails(self) -> list[list[list[int]]]:
        """All but the last token of an answer are inputs too."""
        return [
            [[*prefill, *target[:-1]] for prefill in own]
            for own, target in zip(self.prefills, self.targets, strict=True)
        ]

    @property
    def width(self) -> int:
        return max(map(len, self.targets))

    @property
    def static(self) -> tuple:
        return ()

    def examples(
        self, indices: np.ndarray, prompts: np.ndarray | None = None, tails: np.ndarray | None = None
    ) -> dict:
        """`ids` (B, J), padded with -1, and `behind` (B,): tokens behind the position that makes the first of
        them."""
        ids = np.full((len(indices), self.width), -1, np.int32)
        behind = np.zeros(len(indices), np.int32)
        for row, i in enumerate(indices):
            ids[row, : len(self.targets[i])] = self.targets[i]
            behind[row] = len(self.targets[i]) - 1
        return {"ids": ids, "behind": behind}

    def row_losses(
        self,
        model: nnx.Module,
        batch: Batch,
        audio_bank: jax.Array,
        examples: dict[str, jax.Array],
        *,
        remat: str = "none",
    ) -> jax.Array:
        ids = examples["ids"]
        if ids.shape[1] == 1:
            states = model.representations(batch, audio_bank, remat=remat)[:, None]
        else:
            first = (batch.lengths - 1 - examples["behind"])[:, None]
            positions = jnp.minimum(first + jnp.arange(ids.shape[1]), batch.lengths[:, None] - 1)
            states = model.states_at(batch, audio_bank, positions, remat=remat)
        return mean_cross_entropy(model, states, ids)


def mean_cross_entropy(model: nnx.Module, states: jax.Array, ids: jax.Array) -> jax.Array:
    """(B,) float32: of states (B, J, D) and the tokens (B, J) that they are to give, over those that are not
    -1."""

    def cross_entropy(states, ids):
        logits = model.logits(states)
        chosen = jnp.take_along_axis(logits, jnp.maximum(ids, 0)[:, None], axis=-1)[:, 0]
        return jnp.where(ids >= 0, jax.nn.logsumexp(logits, axis=-1) - chosen, 0)

    return map_positions(cross_entropy, states, ids).sum(axis=1) / jnp.sum(ids >= 0, axis=1)


def refusals(samples: Samples, frozen, config, chosen: np.ndarray) -> list[list[int]]:
    """A refusal of each chosen harmful sample: the frozen model's own under t̃ where it begins with a refusal
    token, else REFUSAL. Nothing harmful is written."""
    asked = [frozen.prompt(i, config.rrs.refusal_prompt) for i in chosen]
    fixed = frozen.text_ids(REFUSAL)
    made = answers(frozen, asked, config.sft.tokens)
    return [answer if answer[0] in frozen.refusal_ids else fixed for answer in made]


def own_answers(frozen, config, chosen: np.ndarray) -> list[list[int]]:
    """The frozen model's own answers to the chosen samples under t."""
    return answers(frozen, [frozen.prompt(i, PROMPT_T) for i in chosen], config.sft.tokens)


def answers(frozen, prompts: list, length: int) -> list[list[int]]:
    """The frozen model's answers, at most `length` tokens, with the end token where they end before."""
    made = frozen.answers(prompts, length)
    return [[*answer, frozen.end_id] if len(answer) < length else answer for answer in made]


def extracted_targets(
    samples: Samples, frozen, targets: list[list[int]], prefills: list[list[list[int]]] | None = None
) -> Extracted:
    """Rows of `RUN/sft_targets.jsonl` from each sample's target and prefills, and what share of them
    refuses."""
    prefills = prefills or [[[]] for _ in targets]
    rows = [
        {
            "id": row["id"],
            "label": row["label"],
            "text": frozen.decode(target),
            "target": target,
            "prefills": own,
        }
        for row, target, own in zip(samples.rows, targets, prefills, strict=True)
    ]
    refused = [target[0] in frozen.refusal_ids for target in targets]
    facts = {
        "harmful_refused_percent": _percent(refused, samples.harmful),
        "benign_refused_percent": _percent(refused, ~samples.harmful),
    }
    say(
        f"targets: {facts['harmful_refused_percent']} % of the harmful questions' and"
        f" {facts['benign_refused_percent']} % of the benign ones' begin with a refusal token"
    )
    return Extracted(rows, facts=facts)


def build(extracted: Extracted, samples: Samples, config) -> SFT:
    """The loss, from the rows of `RUN/sft_targets.jsonl`."""
    rows = extracted.content
    return SFT([row["target"] for row in rows], [row["prefills"] for row in rows])


def _percent(refused: list[bool], chosen: np.ndarray) -> float | None:
    return round(100 * float(np.mean(np.array(refused)[chosen])), 1) if chosen.any() else None
