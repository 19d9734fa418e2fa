"""The two compiled functions of generation: prompts in, and a chunk of further tokens."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.generate.sampling import SamplingConfig, next_tokens
from rrs_jax.generate.state import DecodingState, Entered
from rrs_jax.models.batch import Batch

CHUNK_STEPS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class StepSettings:
    """Settings for which both functions are compiled.

    Attributes:
      graphdef: the model's structure.
      eos: int32, the tokens that end an answer.
      cache_dtype: dtype of keys and values.
      fused: attention while decoding by `rrs_jax.models.fused_attention`.
      axis: of a mesh, along which devices compute their own rows, all as many steps as one of them needs.
    """

    graphdef: Any
    sampling: SamplingConfig
    eos: np.ndarray
    cache_dtype: Any
    fused: bool
    axis: str | None = None


@flax.struct.dataclass
class AskedAnswers:
    """The answers of prompts to prefill: `seeds` uint32 (Q, U), and `wanted` bool (Q, U), false for rows that
    fill up."""

    seeds: jax.Array
    wanted: jax.Array


def prefill(
    settings: StepSettings, parameters, batch: Batch, audio_bank: jax.Array, asked: AskedAnswers
) -> Entered:
    """Runs prompts (Q, T) and chooses the first token of each of their answers."""
    sampling = settings.sampling
    model = nnx.merge(settings.graphdef, parameters)
    logits, positions, keys_values = model.prefill(batch, audio_bank, settings.cache_dtype)
    seen = _seen(batch, logits.shape[1]) if sampling.repetition_penalty != 1.0 else _unseen(len(logits))
    samples, finite = asked.seeds.shape[1], jnp.isfinite(logits).all(axis=1)
    logits, seen, positions = (jnp.repeat(x, samples, axis=0) for x in (logits, seen, positions))
    seeds = asked.seeds.reshape(-1)
    tokens = next_tokens(logits, seen, _keys(seeds, jnp.zeros(seeds.shape, jnp.int32)), sampling)
    more = ~jnp.isin(tokens, settings.eos) & (sampling.max_new_tokens > 1)
    return Entered(
        prompts=keys_values,
        lengths=batch.lengths,
        finite=finite,
        tokens=tokens,
        positions=positions,
        active=asked.wanted.reshape(-1) & more,
        seeds=seeds,
        seen=_mark(seen, tokens),
    )


def decode_chunk(settings: StepSettings, parameters, state: DecodingState) -> tuple[DecodingState, jax.Array]:
    """Chooses up to `CHUNK_STEPS` more tokens a row.

    Returns the state and the tokens, int32 (B, 1 + CHUNK_STEPS): the one chosen before, and the new ones of
    the row, left-aligned.
    """
    model = nnx.merge(settings.graphdef, parameters)
    adapters = model.adapters(all_layers=True)  # once, not in every step
    rows = state.tokens.shape[0]

    def unfinished(carry):
        state, _, n = carry
        active = jnp.any(state.active)
        if settings.axis is not None:  # all take the same steps, since they share the slot
            active = jax.lax.psum(active.astype(jnp.int32), settings.axis) > 0
        return (n < CHUNK_STEPS) & active

    def step(carry):
        state, chosen, n = carry
        logits, cache = model.decode(
            state.tokens, state.positions, state.slot, state.cache, adapters, fused=settings.fused
        )
        tokens = next_tokens(logits, state.seen, _keys(state.seeds, state.made), settings.sampling)
        tokens = jnp.where(state.active, tokens, state.tokens)
        made = state.made + state.active
        more = ~jnp.isin(tokens, settings.eos) & (made < settings.sampling.max_new_tokens)
        state = DecodingState(
            cache=cache,
            tokens=tokens,
            positions=state.positions + state.active,
            made=made,
            active=state.active & more,
            seeds=state.seeds,
            seen=_mark(state.seen, tokens),
            slot=(state.slot + 1) % state.cache.valid.shape[1],
        )
        return state, chosen.at[:, n + 1].set(tokens), n + 1

    chosen = jnp.zeros((rows, 1 + CHUNK_STEPS), jnp.int32).at[:, 0].set(state.tokens)
    state, chosen, _ = jax.lax.while_loop(unfinished, step, (state, chosen, jnp.int32(0)))
    return state, chosen


def _keys(seeds: jax.Array, made: jax.Array) -> jax.Array:
    """A random key for each row's next token, from its seed and the tokens made so far."""
    return jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(seeds, made)


def _seen(batch: Batch, vocabulary: int) -> jax.Array:
    """The tokens of each prompt, bool (Q, V)."""
    queries, width = batch.input_ids.shape
    real = jnp.arange(width)[None] < batch.lengths[:, None]
    unseen = jnp.zeros((queries, vocabulary), bool)
    return unseen.at[jnp.arange(queries)[:, None], batch.input_ids].max(real)


def _unseen(queries: int) -> jax.Array:
    """The place of `_seen` where nothing asks for it, bool (Q, 1)."""
    return jnp.zeros((queries, 1), bool)


def _mark(seen: jax.Array, tokens: jax.Array) -> jax.Array:
    """`seen` with each row's new token."""
    if seen.shape[1] == 1:
        return seen
    return seen.at[jnp.arange(seen.shape[0]), tokens].set(True)
