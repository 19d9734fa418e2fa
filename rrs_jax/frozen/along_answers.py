"""How far a model's next tokens are from the vanilla model's, along given answers."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.distributed.mesh import fetch
from rrs_jax.frozen.extraction import LOGIT_ROWS
from rrs_jax.inputs.batching import EncodedPrompt, pad_rows


def answer_rows(prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[int]]) -> list[EncodedPrompt]:
    """Each prompt with its answer behind it, but for the answer's last token, which nothing follows."""
    return [
        ([*ids, *answer[:-1]], offsets, counts)
        for (ids, offsets, counts), answer in zip(prompts, answers, strict=True)
    ]


def along(states: np.ndarray, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """Picks the states that make the answers' tokens, (tokens of all answers, D), answer by answer.

    states: (N, J, D) of `answer_rows`, at the last J tokens of each (`extract_all` with `last`); no answer
    has more than J tokens.
    """
    own = zip(states, map(len, answers), strict=True)
    return np.concatenate([last[len(last) - tokens :] for last, tokens in own])


def divergences(model: nnx.Module, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL(before ‖ after) of the next token's distribution, in nats, float32 (N,), and whether the likeliest
    token is the same, bool (N,).

    before, after: final-norm states (N, D), whose logits the output head of `model` gives.
    """
    graphdef, state = nnx.split(model)
    parts = []
    for start in range(0, len(before), LOGIT_ROWS):
        pair = (before[start : start + LOGIT_ROWS], after[start : start + LOGIT_ROWS])
        parts.append(_divergences(graphdef, state, *pad_rows(pair, LOGIT_ROWS)))
    found = [np.concatenate(column)[: len(before)] for column in zip(*fetch(parts), strict=True)]
    return found[0], found[1]


@functools.partial(jax.jit, static_argnums=0)
def _divergences(graphdef, state, before: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graphdef, state)
    first, second = (jax.nn.log_softmax(model.logits(states)) for states in (before, after))
    # It is never negative; the sum of so many terms may round to less.
    divergence = jnp.maximum(jnp.sum(jnp.exp(first) * (first - second), axis=-1), 0)
    return divergence, jnp.argmax(first, axis=-1) == jnp.argmax(second, axis=-1)
