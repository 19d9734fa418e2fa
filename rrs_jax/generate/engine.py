"""Continuous batching in chunks: every few steps finished prompts leave and new ones take their places.

Prompts that are equal (the samples of one query) are computed once: their answers share the prompt's keys and
values. A prompt leaves when all its answers are finished.

A decoding step reads every weight once and of the cache the slots in use, up to rounding: the prompts' slots
are as many as the longest prompt in flight has, the answers' grow with the longest answer in flight.

Adapters are applied beside the base, never merged into it: merged in place they could not be taken out again
exactly in 16 bit, and the untrained model, which is evaluated too, shares the base's arrays.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.distributed.mesh import batch_sharding, fetch, mesh_of, put, rows_multiple
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.generate.sampling import SamplingConfig, next_tokens
from rrs_jax.generate.state import DecodingState, Entered, empty_state, insert, resize, take
from rrs_jax.inputs.batching import bucket_lengths, bucket_of, collate
from rrs_jax.models.batch import Batch
from rrs_jax.models.fused_attention import serves
from rrs_jax.models.stack import compiler_options

CHUNK_STEPS = 16
WHOLE_ROWS = 8  # of a product on a GPU
PREFILLS = 4  # parts in which a whole batch of prompts is prefilled


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One request. `row` is what `collate` takes: token ids, and each clip's place and size in the audio
    bank; `seed` makes a sampled answer repeatable, whatever else is in the batch."""

    key: object
    row: tuple[Sequence[int], Sequence[int], Sequence[int]]
    seed: int = 0


@dataclasses.dataclass
class Place:
    """A prompt in flight, its requests, and what is known of their answers."""

    prompts: list[Prompt]
    answers: list[list[int]]
    finished: list[bool]


class Generator:
    """Generates for one model; compiled functions are kept between calls of `generate`.

    Args:
      model: an audio language model of `rrs_jax.models`.
      eos_token_ids: any of them ends an answer and is not part of it.
      batch_size: answers in flight; rounded up to a multiple of the mesh's data axes and of a query's
        samples.
      cache_dtype: auto (the model's own), bfloat16, float32, or int8 with a scale for each token and head.
      fused: whether one kernel does a layer's attention while decoding; None: where it serves
        (`rrs_jax.models.fused_attention.serves`).
    """

    def __init__(
        self,
        model: nnx.Module,
        sampling: SamplingConfig,
        *,
        eos_token_ids: Sequence[int],
        batch_size: int = 16,
        cache_dtype: str = "auto",
        fused: bool | None = None,
    ):
        self.graphdef, self.state = nnx.split(model)
        self.sampling, self.mesh, self.batch_size = sampling, mesh_of(model), batch_size
        self.eos = np.asarray(list(eos_token_ids), np.int32)
        self.audio_token_id = model.config.audio_token_id
        cache_dtype = None if cache_dtype == "auto" else jnp.dtype(cache_dtype)
        common = self.graphdef, sampling, self.eos
        options = compiler_options()
        if fused is None:
            kept_in = model.dtype if cache_dtype is None else cache_dtype
            fused = serves(kept_in, model.config.text.head_dim, self.mesh.size)
        # The kernel reads used slots alone, so it can have more of them at once: one program less, and one
        # copy less.
        self.slot_growth = 4 if fused else 2
        self._prefill = jax.jit(functools.partial(_prefill, *common, cache_dtype), compiler_options=options)
        self._decode = jax.jit(
            functools.partial(_decode, *common, fused), donate_argnums=(1,), compiler_options=options
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        audio_bank: jax.Array,
        on_finished: Callable[[object, list[int]], None],
        prefix_states: PrefixStates | None = None,
    ) -> None:
        """Answers every prompt; `on_finished(key, tokens)` is called as each is ready, without its end token.
        `prefix_states`: where to start, with keys and values, if all prompts are in it."""
        if not prompts:
            return
        if prefix_states is not None and not all(prompt.row in prefix_states for prompt in prompts):
            prefix_states = None
        pending = group_prompts(prompts, self.sampling.max_new_tokens)
        pending.sort(key=lambda group: len(group[0].row[0]))
        buckets = bucket_lengths([len(group[0].row[0]) for group in pending], 4, 8)
        samples = max(map(len, pending))
        queries, prefill_size = self._sizes(len(pending), samples)
        last_part = (queries - 1) % prefill_size + 1  # else its places would stay idle for a whole wave
        places: list[Place | None] = [None] * queries
        state = None
        while pending or any(places):
            while pending and (free := places.count(None)) >= min(last_part, len(pending)):
                taken = min(prefill_size, free)
                new, pending = pending[:taken], pending[taken:]
                width = bucket_of(len(new[-1][0].row[0]), buckets)
                entered = self._run_prefill(new, audio_bank, width, prefill_size, samples, prefix_states)
                state = self._insert(state, entered, places, new)
            state = resize_to_need(state, places, self.slot_growth)
            state, tokens = self._decode(self.state, state)
            self._collect(state, tokens, places, on_finished)
            if not pending:
                state, places = self._shrink(state, places)

    def _sizes(self, groups: int, samples: int) -> tuple[int, int]:
        """Prompts in flight, in as few equal waves as the batch allows; and prompts of one prefill."""
        multiple = rows_multiple(self.mesh)

        def round_up(n, multiple=multiple):
            return -(-n // multiple) * multiple

        most = round_up(-(-self.batch_size // samples))
        waves = -(-groups // most)
        queries = round_up(-(-groups // waves))
        if jax.default_backend() == "gpu" and queries * samples > WHOLE_ROWS**2:
            # Around a product in 16 bit whose rows are no multiple of 8, XLA copies what it reads and writes.
            queries = round_up(queries, math.lcm(multiple, WHOLE_ROWS // math.gcd(samples, WHOLE_ROWS)))
        queries = min(queries, most)
        return queries, round_up(-(-queries // PREFILLS))

    def _run_prefill(
        self, new, audio_bank, width: int, size: int, samples: int, prefix_states: PrefixStates | None
    ) -> Entered:
        """Surplus prompts repeat the last one, surplus answers are never active."""
        filled = [*new, *[new[-1]] * (size - len(new))]
        rows = [group[0].row for group in filled]
        batch = collate(rows, width, self.audio_token_id)
        if prefix_states is not None:
            batch = prefix_states.attach(batch, rows)
        seeds = np.asarray(
            [[prompt.seed for prompt in group] + [0] * (samples - len(group)) for group in filled]
        )
        wanted = np.asarray([[i < len(group) for i in range(samples)] for group in filled])
        inputs = (batch, seeds.astype(np.uint32), wanted)
        batch, seeds, wanted = put(inputs, batch_sharding(self.mesh))
        return self._prefill(self.state, batch, audio_bank, seeds, wanted)

    def _insert(self, state: DecodingState | None, entered: Entered, places: list, new) -> DecodingState:
        width = entered.prompts.keys.shape[3]
        if state is None:
            state = empty_state(entered, len(places), width, CHUNK_STEPS)
        elif width > state.cache.prompts.keys.shape[3]:
            state = resize(state, width, state.cache.valid.shape[1])
        free = [place for place, occupant in enumerate(places) if occupant is None][: len(new)]
        # Surplus prompts of a short prefill fall outside the batch and are dropped by the scatter.
        targets = free + [len(places)] * (entered.lengths.shape[0] - len(new))
        for place, group in zip(free, new, strict=True):
            places[place] = Place(group, [[] for _ in group], [False] * len(group))
        return insert(state, entered, jnp.asarray(targets, jnp.int32))

    def _collect(self, state: DecodingState, tokens, places: list, on_finished) -> None:
        """Reads a chunk's tokens; hands out finished answers and frees the places without another."""
        active, made, tokens = fetch((state.active, state.made, tokens))
        samples = len(active) // len(places)
        for index, place in enumerate(places):
            if place is None:
                continue
            for i, (prompt, answer) in enumerate(zip(place.prompts, place.answers, strict=True)):
                row = index * samples + i
                if place.finished[i]:
                    continue
                # The first column is the token before the chunk's: that of the prefill, or known.
                answer += tokens[row, (1 if answer else 0) : 1 + made[row] - max(len(answer), 1)].tolist()
                if not active[row]:
                    place.finished[i] = True
                    on_finished(prompt.key, answer[:-1] if answer[-1] in self.eos else answer)
            if all(place.finished):
                places[index] = None

    @staticmethod
    def _shrink(state: DecodingState, places: list) -> tuple[DecodingState, list]:
        """Half as many places once no prompt waits and half of them are idle."""
        alive = [index for index, place in enumerate(places) if place]
        half = len(places) // 2
        devices = len(state.tokens.sharding.device_set)
        if not alive or len(alive) > half or half % devices:
            return state, places
        chosen = (alive + [index for index in range(len(places)) if index not in alive])[:half]
        return take(state, jnp.asarray(chosen, jnp.int32)), [places[index] for index in chosen]


def group_prompts(prompts: Sequence[Prompt], new_tokens: int) -> list[list[Prompt]]:
    """Equal prompts together, at most n in a group, where n gives the fewest slots: a group holds its prompt
    once and has n answers' slots, used or not."""
    groups: dict[tuple, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(tuple(map(tuple, prompt.row)), []).append(prompt)
    sizes = [(len(group), len(group[0].row[0])) for group in groups.values()]

    def slots(n: int) -> int:
        return sum(-(-size // n) * (length + n * new_tokens) for size, length in sizes)

    n = min(sorted({size for size, _ in sizes} | {1}), key=slots)
    return [group[start : start + n] for group in groups.values() for start in range(0, len(group), n)]


def resize_to_need(state: DecodingState, places: list, growth: int) -> DecodingState:
    """Room for one more chunk behind the longest answer in flight, rounded up to a power of `growth` of
    chunks."""
    longest = max(
        len(answer)
        for place in places
        if place
        for answer, finished in zip(place.answers, place.finished, strict=True)
        if not finished
    )
    slots = CHUNK_STEPS
    while slots < longest - 1 + CHUNK_STEPS:  # the newest token is not in the cache yet
        slots *= growth
    have = state.cache.valid.shape[1]
    return state if slots == have else resize(state, state.cache.prompts.keys.shape[3], slots)


def _prefill(
    graphdef, sampling: SamplingConfig, eos, cache_dtype, params, batch: Batch, audio_bank, seeds, wanted
):
    """Prompts (q, T) in, the first tokens of their answers chosen; `seeds` and `wanted` are (q, n)."""
    model = nnx.merge(graphdef, params)
    logits, positions, store = model.prefill(batch, audio_bank, cache_dtype)
    (queries, vocabulary), samples = logits.shape, seeds.shape[1]
    real = jnp.arange(batch.input_ids.shape[1])[None] < batch.lengths[:, None]
    if sampling.repetition_penalty != 1.0:
        seen = (
            jnp.zeros((queries, vocabulary), bool).at[jnp.arange(queries)[:, None], batch.input_ids].max(real)
        )
    else:
        seen = jnp.zeros((queries, 1), bool)
    logits, seen, positions = (jnp.repeat(x, samples, axis=0) for x in (logits, seen, positions))
    seeds = seeds.reshape(-1)
    tokens = next_tokens(logits, seen, _keys(seeds, jnp.zeros(seeds.shape, jnp.int32)), sampling)
    active = wanted.reshape(-1) & ~jnp.isin(tokens, eos) & (sampling.max_new_tokens > 1)
    return Entered(
        prompts=store,
        lengths=batch.lengths,
        tokens=tokens,
        positions=positions,
        active=active,
        seeds=seeds,
        seen=_mark(seen, tokens),
    )


def _decode(graphdef, sampling: SamplingConfig, eos, fused: bool, params, state: DecodingState):
    """Up to CHUNK_STEPS more tokens a row; returns the state and the tokens (B, 1 + CHUNK_STEPS): the one
    chosen before, and the new ones of the row, left-aligned."""
    model = nnx.merge(graphdef, params)
    adapters = model.adapters(all_layers=True)  # once, not in every step
    rows = state.tokens.shape[0]

    def unfinished(carry):
        state, _, n = carry
        return (n < CHUNK_STEPS) & jnp.any(state.active)

    def step(carry):
        state, chosen, n = carry
        logits, cache = model.decode(
            state.tokens, state.positions, state.slot, state.cache, adapters, fused=fused
        )
        tokens = next_tokens(logits, state.seen, _keys(state.seeds, state.made), sampling)
        tokens = jnp.where(state.active, tokens, state.tokens)
        made = state.made + state.active
        state = DecodingState(
            cache=cache,
            tokens=tokens,
            positions=state.positions + state.active,
            made=made,
            active=state.active & ~jnp.isin(tokens, eos) & (made < sampling.max_new_tokens),
            seeds=state.seeds,
            seen=_mark(state.seen, tokens),
            slot=(state.slot + 1) % state.cache.valid.shape[1],
        )
        return state, chosen.at[:, n + 1].set(tokens), n + 1

    chosen = jnp.zeros((rows, 1 + CHUNK_STEPS), jnp.int32).at[:, 0].set(state.tokens)
    state, chosen, _ = jax.lax.while_loop(unfinished, step, (state, chosen, jnp.int32(0)))
    return state, chosen


def _keys(seeds: jax.Array, made: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(seeds, made)


def _mark(seen: jax.Array, tokens: jax.Array) -> jax.Array:
    if seen.shape[1] == 1:
        return seen
    return seen.at[jnp.arange(seen.shape[0]), tokens].set(True)
