"""Continuous batching in chunks: every few steps finished prompts leave and new ones take their places.

Prompts that are equal (the samples of one query) are computed once: their answers share the prompt's keys and
values. A prompt leaves when all its answers are finished.

Example: prompts a, b and c, two answers each, four answers in flight. Two *places* then hold a prompt with
its answers, a *slot* of the cache holds one token of every answer:

    prefill    places [a a] [b b]    the first token of each answer is chosen
    chunk      16 steps              an answer that ends early leaves its row idle, its place stays taken
    chunk      16 steps              the cache grows from 16 slots to 32 (`resize_to_need`)
    collect    places [a a] [   ]    both answers of b are finished
    prefill    places [a a] [c c]    c begins in slots that b has left, a goes on
    ...
    collect    places [   ] [c c]    no prompt waits: one place is enough (`_shrink`)

A decoding step reads every weight once and of the cache the slots in use, up to rounding: the prompts' slots
are as many as the longest prompt in flight has, the answers' grow with the longest answer in flight.

Adapters are applied beside the base, never merged into it: merged in place they could not be taken out again
exactly in 16 bit, and the untrained model, which is evaluated too, shares the base's arrays.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from rrs_jax.distributed.memory import least_free_memory
from rrs_jax.distributed.mesh import batch_sharding, each_by_itself, fetch, mesh_of, put, rows_multiple
from rrs_jax.errors import UserError
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.generate.memory import Flight, FlightPlan
from rrs_jax.generate.sampling import SamplingConfig
from rrs_jax.generate.state import ENTERED_SPECS, ROWS, STATE_SPECS, DecodingState, Entered, OnMesh, resize
from rrs_jax.generate.steps import CHUNK_STEPS, AskedAnswers, StepSettings, decode_chunk, prefill
from rrs_jax.inputs.batching import bucket_lengths, bucket_of, collate
from rrs_jax.models.stack import compiler_options


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One request for an answer.

    Attributes:
      key: handed back with the answer.
      row: token ids, and each clip's place and size in the audio bank (`rrs_jax.inputs.batching.collate`).
      seed: makes a sampled answer repeatable, whatever else is in the batch.
    """

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
      batch_size: answers in flight, rounded up to a multiple of the mesh's data axes and of a query's
        samples; or auto, as many as the devices' memory holds when `generate` is called, and no more than
        keep a device busy (`rrs_jax.generate.memory`).
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
        batch_size: int | Literal["auto"] = "auto",
        cache_dtype: str = "auto",
        fused: bool | None = None,
    ):
        self.graphdef, self.state = nnx.split(model)
        self.sampling, self.mesh, self.batch_size = sampling, mesh_of(model), batch_size
        self.eos = np.asarray(list(eos_token_ids), np.int32)
        self.audio_token_id = model.config.audio_token_id
        self.plan = FlightPlan(
            model.config.text, model.dtype, cache_dtype, sampling.max_new_tokens, self.mesh, fused
        )
        axis = "data" if self.mesh.shape["data"] > 1 else None
        settings = StepSettings(
            self.graphdef, sampling, self.eos, self.plan.kept_in(), self.plan.is_fused(), axis
        )
        self.on_mesh = OnMesh(self.mesh)
        whole, jit = PartitionSpec(), functools.partial(jax.jit, compiler_options=compiler_options())
        prefilling, decoding = (functools.partial(step, settings) for step in (prefill, decode_chunk))
        if self.mesh.shape["data"] == self.mesh.size:
            prefilling = each_by_itself(self.mesh, prefilling, (whole, ROWS, whole, ROWS), ENTERED_SPECS)
        # Where `fsdp` or `tensor` cut it besides, cuDNN's attention wants the whole mesh in sight.
        self._prefill = jit(prefilling, out_shardings=self.on_mesh.entered)
        self._decode = jit(
            each_by_itself(self.mesh, decoding, (whole, STATE_SPECS), (STATE_SPECS, ROWS)),
            donate_argnums=(1,),
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        audio_bank: jax.Array,
        on_finished: Callable[[object, list[int]], None],
        prefix_states: PrefixStates | None = None,
    ) -> None:
        """Answers every prompt; `on_finished(key, tokens)` is called as each is ready, without its end token.

        `prefix_states`, which hold keys and values, are where prefill starts if all prompts are in them.
        Raises UserError where a prompt's first logits are not finite, before an answer to it is handed out.
        """
        if not prompts:
            return
        if prefix_states is not None and not all(prompt.row in prefix_states for prompt in prompts):
            prefix_states = None
        pending = group_prompts(prompts, self.sampling.max_new_tokens)
        pending.sort(key=lambda group: len(group[0].row[0]))
        buckets = bucket_lengths([len(group[0].row[0]) for group in pending], 4, 8)
        flight = self._flight(len(pending), max(map(len, pending)), buckets[-1])
        last_part = (flight.queries - 1) % flight.prefill + 1  # else its places would stay idle for a wave
        places: list[Place | None] = [None] * flight.queries
        state, entries = None, []
        while pending or any(places):
            while pending and (free := places.count(None)) >= min(last_part, len(pending)):
                taken = min(flight.prefill, free)
                new, pending = pending[:taken], pending[taken:]
                width = bucket_of(len(new[-1][0].row[0]), buckets)
                entered = self._run_prefill(new, audio_bank, width, flight, prefix_states)
                entries.append(entered.finite)
                state = self._insert(state, entered, places, new)
                del entered  # whose keys and values are in `state`, before the next ones are made
            state = resize_to_need(state, places, self.plan)
            state, tokens = self._decode(self.state, state)
            _check_first_logits(entries)  # read here, where the host waits for the device anyway
            self._collect(state, tokens, places, on_finished)
            if not pending:
                state, places = self._shrink(state, places)

    def _flight(self, groups: int, samples: int, width: int) -> Flight:
        batch_size = self.batch_size
        if batch_size == "auto":
            batch_size = self.plan.fitting(groups, samples, width, least_free_memory(self.mesh))
        return self.plan.flight(groups, samples, width, batch_size)

    def _run_prefill(
        self, new, audio_bank, width: int, flight: Flight, prefix_states: PrefixStates | None
    ) -> Entered:
        """Prefills the groups `new`, filled up to a prefill's size: surplus prompts repeat the last one,
        surplus answers are never active."""
        samples, filled = flight.samples, [*new, *[new[-1]] * (flight.prefill - len(new))]
        rows = [group[0].row for group in filled]
        batch = collate(rows, width, self.audio_token_id)
        if prefix_states is not None:
            batch = prefix_states.attach(batch, rows)
        seeds = np.asarray(
            [[prompt.seed for prompt in group] + [0] * (samples - len(group)) for group in filled]
        )
        wanted = np.asarray([[i < len(group) for i in range(samples)] for group in filled])
        asked = AskedAnswers(seeds.astype(np.uint32), wanted)
        batch, asked = put((batch, asked), batch_sharding(self.mesh))
        return self._prefill(self.state, batch, audio_bank, asked)

    def _insert(self, state: DecodingState | None, entered: Entered, places: list, new) -> DecodingState:
        """Puts prefilled groups into free places, which are then taken."""
        width = entered.prompts.keys.shape[3]
        if state is None:
            state = self.on_mesh.empty_state(entered, len(places), width, CHUNK_STEPS)
        elif width > state.cache.prompts.keys.shape[3]:
            state = resize(state, width, state.cache.valid.shape[1])
        free = [place for place, occupant in enumerate(places) if occupant is None][: len(new)]
        # Surplus prompts of a short prefill fall outside the batch and are dropped by the scatter.
        targets = free + [len(places)] * (entered.lengths.shape[0] - len(new))
        for place, group in zip(free, new, strict=True):
            places[place] = Place(group, [[] for _ in group], [False] * len(group))
        return self.on_mesh.insert(state, entered, jnp.asarray(targets, jnp.int32))

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

    def _shrink(self, state: DecodingState, places: list) -> tuple[DecodingState, list]:
        """The state with half as many places, once half of them are idle on each part of `data` and no prompt
        waits; not where a step takes about as long with all of them."""
        half, own = len(places) // 2, len(places) // self.mesh.shape["data"]
        if not any(places) or half % rows_multiple(self.mesh) or len(state.tokens) <= self.plan.few():
            return state, places
        chosen: list[int] = []
        for start in range(0, len(places), own):
            part = range(start, start + own)
            if sum(places[index] is not None for index in part) > own // 2:
                return state, places
            chosen += sorted(part, key=lambda index: places[index] is None)[: own // 2]
        return self.on_mesh.take(state, jnp.asarray(chosen, jnp.int32)), [places[index] for index in chosen]


def _check_first_logits(entries: list[jax.Array]) -> None:
    """Raises UserError for prompts without logits, and empties the list."""
    if not all(finite.all() for finite in fetch(entries)):
        raise UserError(
            "generation: the logits behind a prompt are NaN or infinite, so that its answer would be noise;"
            " set model.dtype to float32, or check the weights and the adapter."
        )
    entries.clear()


def group_prompts(prompts: Sequence[Prompt], new_tokens: int) -> list[list[Prompt]]:
    """Groups of equal prompts, at most n in a group, where n gives the fewest slots: a group holds its prompt
    once and has n answers' slots, used or not.

    Example: a prompt of 100 tokens asked four times and one of 100 asked once, answers of 50 tokens. In
    groups of at most 4 they take 2 · (100 + 4 · 50) = 600 slots, one by one 5 · (100 + 50) = 750.
    """
    groups: dict[tuple, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(tuple(map(tuple, prompt.row)), []).append(prompt)
    sizes = [(len(group), len(group[0].row[0])) for group in groups.values()]

    def slots(n: int) -> int:
        return sum(-(-size // n) * (length + n * new_tokens) for size, length in sizes)

    n = min(sorted({size for size, _ in sizes} | {1}), key=slots)
    return [group[start : start + n] for group in groups.values() for start in range(0, len(group), n)]


def resize_to_need(state: DecodingState, places: list, plan: FlightPlan) -> DecodingState:
    """The state with room for one more chunk behind the longest answer in flight, in slots that are a chunk
    times a power of `plan.growth()`, or all that an answer can need.

    Example: with chunks of 16 and a growth of 2, answers of up to 17 tokens have 32 slots, since the newest
    token is not in the cache yet; from 18 on they have 64, or 48 where none has more than 49 tokens.
    """
    longest = max(
        len(answer)
        for place in places
        if place
        for answer, finished in zip(place.answers, place.finished, strict=True)
        if not finished
    )
    slots = CHUNK_STEPS
    while slots < longest - 1 + CHUNK_STEPS:
        slots *= plan.growth()
    slots, have = min(slots, plan.most_slots()), state.cache.valid.shape[1]
    return state if slots == have else resize(state, state.cache.prompts.keys.shape[3], slots)
