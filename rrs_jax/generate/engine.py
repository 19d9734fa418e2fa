"""Continuous batching in chunks: every few steps finished rows leave and new prompts take their places.

The cache has a part for prompts, slots 0 to T-1, and behind it a ring of `max_new_tokens` slots. All rows write
their newest token into the same slot of the ring; a row needs only its own last `max_new_tokens` tokens, and what
an earlier occupant left is hidden by the row's `valid` mask, so rows may start at any time.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.generate.sampling import SamplingConfig, next_tokens
from rrs_jax.inputs.batching import bucket_lengths, bucket_of, collate
from rrs_jax.models.batch import Batch
from rrs_jax.models.decoder import Cache
from rrs_jax.parallel import batch_sharding, mesh_of, rows_multiple

CHUNK_STEPS = 16


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One request. `row` is what `collate` takes: token ids, and each clip's place and size in the audio bank;
    `seed` makes a sampled answer repeatable, whatever else is in the batch."""

    key: object
    row: tuple[Sequence[int], Sequence[int], Sequence[int]]
    seed: int = 0


@flax.struct.dataclass
class DecodingState:
    """All rows in flight. `tokens` (B,) were chosen last and are not in the cache yet."""

    cache: Cache
    tokens: jax.Array  # int32 (B,)
    positions: jax.Array  # int32 (B,): where `tokens` stand
    made: jax.Array  # int32 (B,): tokens chosen so far
    active: jax.Array  # bool (B,)
    seeds: jax.Array  # uint32 (B,)
    seen: jax.Array  # bool (B, V), or (B, 1) where nothing asks for it
    step: jax.Array  # int32: all steps so far, which gives the ring's slot


class Generator:
    """Generates for one model; compiled functions are kept between calls of `generate`.

    Args:
      model: an audio language model of `rrs_jax.models`.
      eos_token_ids: any of them ends an answer and is not part of it.
      batch_size: rows in flight; rounded up to a multiple of the mesh's data axes.
    """

    def __init__(
        self, model: nnx.Module, sampling: SamplingConfig, *, eos_token_ids: Sequence[int], batch_size: int = 16
    ):  # fmt: skip
        self.graphdef, self.state = nnx.split(model)
        self.sampling, self.mesh = sampling, mesh_of(model)
        self.eos = np.asarray(list(eos_token_ids), np.int32)
        self.audio_token_id = model.config.audio_token_id
        multiple = rows_multiple(self.mesh)
        self.batch_size = -(-batch_size // multiple) * multiple
        self.prefill_size = max(-(-self.batch_size // 4 // multiple) * multiple, multiple)
        self._prefill = jax.jit(functools.partial(_prefill, self.graphdef, sampling, self.eos), static_argnums=(4,))
        self._decode = jax.jit(
            functools.partial(_decode, self.graphdef, sampling, self.eos), static_argnums=(2,), donate_argnums=(1,)
        )
        self._insert = jax.jit(_insert, donate_argnums=(0,))
        self._take = jax.jit(_take)

    def generate(
        self, prompts: Sequence[Prompt], audio_bank: jax.Array, on_finished: Callable[[object, list[int]], None]
    ) -> None:
        """Answers every prompt; `on_finished(key, tokens)` is called as each is ready, without its end token."""
        if not prompts:
            return
        pending = sorted(prompts, key=lambda prompt: len(prompt.row[0]))
        buckets = bucket_lengths([len(prompt.row[0]) for prompt in pending], 4, 8)
        width = buckets[-1]
        rows: list[Prompt | None] = []
        answers: dict[int, list[int]] = {}
        state = None
        while pending or any(rows):
            while pending and len(rows) - sum(map(bool, rows)) >= min(self.prefill_size, len(pending)) or not rows:
                if not rows:
                    size = min(self.batch_size, -(-len(pending) // self.prefill_size) * self.prefill_size)
                    rows = [None] * size
                    continue
                new, pending = pending[: self.prefill_size], pending[self.prefill_size :]
                bucket = bucket_of(len(new[-1].row[0]), buckets)
                entered = self._run_prefill(new, audio_bank, bucket, width)
                if state is None:
                    state = self._empty_state(entered, len(rows))
                free = [place for place, prompt in enumerate(rows) if prompt is None][: len(new)]
                # Surplus rows of a short prefill fall outside the batch and are dropped by the scatter.
                places = free + [len(rows)] * (self.prefill_size - len(new))
                state = self._insert(state, entered, jnp.asarray(places, jnp.int32))
                first = np.asarray(entered.tokens)
                for place, prompt, token in zip(free, new, first, strict=False):
                    rows[place], answers[place] = prompt, [int(token)]
            state, tokens = self._decode(self.state, state, width)
            active, made, tokens = jax.device_get((state.active, state.made, tokens))
            for place, prompt in enumerate(rows):
                if prompt is None:
                    continue
                answers[place] += tokens[place, : made[place] - len(answers[place])].tolist()
                if not active[place]:
                    answer, rows[place] = answers.pop(place), None
                    if answer[-1] in self.eos:
                        answer.pop()
                    on_finished(prompt.key, answer)
            state, rows, answers = self._shrink(state, rows, answers, bool(pending))

    def _run_prefill(self, prompts: list[Prompt], audio_bank, bucket: int, width: int) -> DecodingState:
        filled = [*prompts, *[prompts[-1]] * (self.prefill_size - len(prompts))]
        batch = collate([p.row for p in filled], bucket, self.audio_token_id)
        batch = jax.device_put(batch, batch_sharding(self.mesh))
        seeds = jax.device_put(np.asarray([p.seed for p in filled], np.uint32), batch_sharding(self.mesh))
        return self._prefill(self.state, batch, audio_bank, seeds, width)

    def _empty_state(self, like: DecodingState, size: int) -> DecodingState:
        """A batch of `size` idle rows of the same kind as a prefilled one."""

        def empty(leaf, axis):
            shape = tuple(size if i == axis else n for i, n in enumerate(leaf.shape))
            return jnp.zeros(shape, leaf.dtype)

        cache = Cache(empty(like.cache.keys, 1), empty(like.cache.values, 1), empty(like.cache.valid, 0))
        rest = {name: empty(getattr(like, name), 0) for name in _ROW_FIELDS}
        return DecodingState(cache=cache, step=jnp.zeros((), jnp.int32), **rest)

    def _shrink(self, state, rows, answers, pending: bool):
        """Half as many rows once the last prompts are in flight and half the places are idle."""
        alive = [place for place, prompt in enumerate(rows) if prompt]
        half = len(rows) // 2
        if pending or not alive or len(alive) > half or half % self.prefill_size:
            return state, rows, answers
        places = (alive + [place for place in range(len(rows)) if place not in alive])[:half]
        state = self._take(state, jnp.asarray(places, jnp.int32))
        return state, [rows[p] for p in places], {new: answers[old] for new, old in enumerate(places) if old in answers}


def _prefill(graphdef, sampling: SamplingConfig, eos, params, batch: Batch, audio_bank, seeds, width: int):
    """Prompts in, their first tokens chosen; the cache has the shape of the whole batch's."""
    model = nnx.merge(graphdef, params)
    logits, cache = model.prefill(batch, audio_bank, width + sampling.max_new_tokens)
    rows, vocabulary = logits.shape
    real = jnp.arange(batch.input_ids.shape[1])[None] < batch.lengths[:, None]
    if sampling.repetition_penalty != 1.0:
        seen = jnp.zeros((rows, vocabulary), bool).at[jnp.arange(rows)[:, None], batch.input_ids].max(real)
    else:
        seen = jnp.zeros((rows, 1), bool)
    tokens = next_tokens(logits, seen, _keys(seeds, jnp.zeros_like(batch.lengths)), sampling)
    return DecodingState(
        cache=cache, tokens=tokens, positions=batch.lengths, made=jnp.ones_like(batch.lengths),
        active=~jnp.isin(tokens, eos) & (sampling.max_new_tokens > 1), seeds=seeds, seen=_mark(seen, tokens),
        step=jnp.zeros((), jnp.int32),
    )  # fmt: skip


def _decode(graphdef, sampling: SamplingConfig, eos, params, state: DecodingState, width: int):
    """Up to CHUNK_STEPS more tokens a row; returns the state and the tokens (B, CHUNK_STEPS), those of a row
    left-aligned."""
    model = nnx.merge(graphdef, params)
    rows = state.tokens.shape[0]

    def unfinished(carry):
        state, _, n = carry
        return (n < CHUNK_STEPS) & jnp.any(state.active)

    def step(carry):
        state, chosen, n = carry
        slot = width + state.step % sampling.max_new_tokens
        logits, cache = model.decode(state.tokens, state.positions, slot, state.cache)
        tokens = next_tokens(logits, state.seen, _keys(state.seeds, state.made), sampling)
        tokens = jnp.where(state.active, tokens, state.tokens)
        made = state.made + state.active
        state = DecodingState(
            cache=cache, tokens=tokens, positions=state.positions + state.active, made=made,
            active=state.active & ~jnp.isin(tokens, eos) & (made < sampling.max_new_tokens),
            seeds=state.seeds, seen=_mark(state.seen, tokens), step=state.step + 1,
        )  # fmt: skip
        return state, chosen.at[:, n].set(tokens), n + 1

    chosen = jnp.zeros((rows, CHUNK_STEPS), jnp.int32)
    state, chosen, _ = jax.lax.while_loop(unfinished, step, (state, chosen, jnp.int32(0)))
    return state, chosen


def _insert(state: DecodingState, new: DecodingState, places: jax.Array) -> DecodingState:
    """Puts prefilled rows into `places`; a place outside the batch drops its row."""

    def put(old, fresh):
        return old.at[places].set(fresh, mode="drop")

    cache = Cache(
        state.cache.keys.at[:, places].set(new.cache.keys, mode="drop"),
        state.cache.values.at[:, places].set(new.cache.values, mode="drop"),
        put(state.cache.valid, new.cache.valid),
    )
    rest = {name: put(getattr(state, name), getattr(new, name)) for name in _ROW_FIELDS}
    return DecodingState(cache=cache, step=state.step, **rest)


def _take(state: DecodingState, places: jax.Array) -> DecodingState:
    cache = Cache(state.cache.keys[:, places], state.cache.values[:, places], state.cache.valid[places])
    return DecodingState(cache=cache, step=state.step, **{name: getattr(state, name)[places] for name in _ROW_FIELDS})


_ROW_FIELDS = ("tokens", "positions", "made", "active", "seeds", "seen")


def _keys(seeds: jax.Array, made: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(seeds, made)


def _mark(seen: jax.Array, tokens: jax.Array) -> jax.Array:
    if seen.shape[1] == 1:
        return seen
    return seen.at[jnp.arange(seen.shape[0]), tokens].set(True)
