"""Harmfulness and refusal coupled after HARC (arXiv 2607.00572), on the same data, adapters and prompts as
RRS.

Behind chosen layers a state counts less the benign questions' mean under the very prompt, h̃. Its cosine with
a refusal direction r counts at the last input token, with a harmfulness direction v at the last token of the
user's turn, before what the chat template writes behind it:

    harmful    ReLU(m - cos(h̃_last, r)) + ReLU(m - cos(h̃_turn, v))
    benign     ReLU(cos(h̃_last, r)) + ReLU(cos(h̃_turn, v)) + weight · KL(p0 ‖ p)

p is the next token's distribution, p0 the frozen model's. Under a prompt that stays (`train.kept_text_share`,
`train.kept_task_share`), which the original does not have, every question has the KL alone. Both directions
are harmful less benign means, as in the original. Its model refuses the harmful questions that r is taken
from; ours do not, so that r takes them under t̃.

The original further re-extracts both directions every 200 steps and mixes them into the first ones, which
stay here; takes states as they are; has the KL at all tokens of an answer, and on harmful questions the same
coupling over an answer's first tokens and the cross-entropy of a refusal. Here no answers are trained.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.prompts import PROMPT_T, prompt_pool
from rrs_jax.models.batch import Batch
from rrs_jax.models.decoder_pass import Wanted
from rrs_jax.progress import say
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.rivals.layers import chosen_layers, first_adapted
from rrs_jax.strategies.samples import Samples, check_kinds

# Of the depth: the original reads what enters the layers 21 to 24 of 28.
SHARES = (20 / 28, 21 / 28, 22 / 28, 23 / 28)
TINY = 1e-12  # squared length below which a state has no direction


@dataclasses.dataclass(frozen=True)
class HARC:
    """Attributes:
    harmful: bool (N,).
    directions: r and v behind each layer, of length 1, float32 (layers, 2, D).
    means: the benign questions' under each prompt of the pool, at the same positions, float32
      (prompts, layers, 2, D).
    stays: bool (prompts,), those under which questions stay.
    layers: decoder layers behind which states are read.
    closing: tokens behind the user's turn.
    margin: m.
    kl: weight of the KL term.
    """

    harmful: np.ndarray
    directions: np.ndarray
    means: np.ndarray
    stays: np.ndarray
    layers: tuple[int, ...]
    closing: int
    margin: float
    kl: float
    tails: None = None

    @property
    def static(self) -> tuple:
        return self.layers, self.closing, self.margin, self.kl

    def examples(self, indices: np.ndarray, prompts: np.ndarray, tails: np.ndarray | None = None) -> dict:
        return {
            "harmful": self.harmful[indices],
            "stays": self.stays[prompts],
            "mean": self.means[prompts],
            "directions": np.broadcast_to(self.directions, (len(indices), *self.directions.shape)),
        }

    def row_losses(
        self,
        model: nnx.Module,
        batch: Batch,
        audio_bank: jax.Array,
        examples: dict[str, jax.Array],
        *,
        remat: str = "none",
    ) -> jax.Array:
        wanted = Wanted(each_layer=(0, self.closing))
        states = model(batch, audio_bank, wanted, remat=remat).each_layer  # (L, B, 2, D)
        before = model.without_adapters()(batch, audio_bank, wanted).each_layer[-1, :, 0]
        harmful, stays = examples["harmful"], examples["stays"]
        moved = jnp.swapaxes(states[jnp.asarray(self.layers)], 0, 1) - examples["mean"]
        along = jnp.sum(moved * examples["directions"], axis=-1)
        cosines = along * jax.lax.rsqrt(jnp.sum(moved**2, axis=-1) + TINY)  # (B, layers, 2)
        excess = jax.nn.relu(jnp.where(harmful[:, None, None], self.margin - cosines, cosines))
        changed = self.kl * _divergence(model, jax.lax.stop_gradient(before), states[-1, :, 0])
        coupling = jnp.where(stays, 0, excess.sum(axis=-1).mean(axis=-1))
        return coupling + jnp.where(harmful & ~stays, 0, changed)


def _divergence(model: nnx.Module, before: jax.Array, now: jax.Array) -> jax.Array:
    """KL(p0 ‖ p), (B,), of the next token's distributions behind states (B, D) before the final norm."""
    old, new = (
        jax.nn.log_softmax(model.logits(model.language_model.norm(states))) for states in (before, now)
    )
    return jnp.sum(jnp.exp(old) * (old - new), axis=-1)


def check(samples: Samples, config) -> None:
    """Raises UserError for samples without both kinds whose means are subtracted."""
    check_kinds(samples, ~samples.harmful, config.strategy)


def extract(samples: Samples, frozen, config) -> Extracted:
    """`directions` and `means` as `HARC` has them; the metadata keep the layers and the length of what closes
    a user's turn.

    Raises UserError for layers that the decoder lacks, or that lie below the first adapter.
    """
    check(samples, config)
    layers = chosen_layers(config.rivals.layers, frozen.num_layers, SHARES, first_adapted(config))
    harmful, benign = np.flatnonzero(samples.harmful), np.flatnonzero(~samples.harmful)
    pool = prompt_pool(config.train)
    moves = [place for place, prompt in enumerate(pool) if not prompt.stays]
    asked = [(harmful, config.rrs.refusal_prompt), (harmful, PROMPT_T), (benign, PROMPT_T)]
    prompts = [[frozen.prompt(i, text) for i in indices] for indices, text in asked]
    prompts += [[frozen.pool_prompt(i, place) for i in benign] for place in moves]
    (refused, harmful_means, benign_means), own = np.split(_mean_states(frozen, prompts, layers), [3])
    means = np.zeros((len(pool), *own.shape[1:]))
    means[moves] = own
    directions = np.stack([refused[:, 0] - benign_means[:, 0], (harmful_means - benign_means)[:, 1]], axis=1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    cosine = round(float(np.mean(np.sum(directions[:, 0] * directions[:, 1], axis=-1))), 2)
    say(f"directions: behind layers {layers} those of refusal and of harm have a cosine of {cosine}")
    arrays = {"directions": directions, "means": means}
    return Extracted(
        {name: array.astype(np.float32) for name, array in arrays.items()},
        {"layers": json.dumps(layers), "closing": str(frozen.closing_tokens)},
        {"layers": layers, "closing_tokens": frozen.closing_tokens, "cosine": cosine},
    )


def build(extracted: Extracted, samples: Samples, config) -> HARC:
    """The loss, from what `extract` gave."""
    arrays, metadata = extracted.content, extracted.metadata
    return HARC(
        samples.harmful,
        arrays["directions"],
        arrays["means"],
        np.array([prompt.stays for prompt in prompt_pool(config.train)]),
        tuple(json.loads(metadata["layers"])),
        int(metadata["closing"]),
        config.rivals.harc_margin,
        config.rivals.harc_kl,
    )


def _mean_states(frozen, prompts: list[list], layers: list[int]) -> np.ndarray:
    """Means of each list of prompts behind layers, at the last token and at the user's last: float64
    (lists, layers, 2, D)."""
    every = [prompt for part in prompts for prompt in part]
    # No token sees those behind it, so the user's last token is the last one of what is cut there.
    cut = [(ids[: -frozen.closing_tokens], offsets, counts) for ids, offsets, counts in every]
    states = frozen.layer_states(every + cut, layers)
    both = np.stack(np.split(states, 2), axis=2)  # (prompts, layers, 2, D)
    parts = np.split(both, np.cumsum([len(part) for part in prompts])[:-1])
    return np.stack([part.mean(axis=0, dtype=np.float64) for part in parts])
