"""All answers in flight, and how places among them are filled, widened and given up."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrs_jax.distributed.mesh import each_by_itself
from rrs_jax.models.cache import Cache, KeysValues


@flax.struct.dataclass
class DecodingState:
    """Q prompts with U answers each, B = Q·U rows in this order.

    Attributes:
      tokens: int32 (B,), chosen last and not in the cache yet.
      positions: int32 (B,), where `tokens` stand.
      made: int32 (B,), tokens chosen so far.
      active: bool (B,), answers that go on.
      seeds: uint32 (B,).
      seen: bool (B, V), tokens of the prompt and the answer, or (B, 1) where nothing asks for them.
      slot: int32, of the answers' cache, where the next tokens go.
    """

    cache: Cache
    tokens: jax.Array
    positions: jax.Array
    made: jax.Array
    active: jax.Array
    seeds: jax.Array
    seen: jax.Array
    slot: jax.Array


@flax.struct.dataclass
class Entered:
    """Prefilled prompts with keys and values (L, Q, K, T, E) and lengths (Q,), and the rows of their answers,
    (Q·U, ...) each, as in `DecodingState`. `finite`, bool (Q,): every logit behind the prompt is a number."""

    prompts: KeysValues
    lengths: jax.Array
    finite: jax.Array
    tokens: jax.Array
    positions: jax.Array
    active: jax.Array
    seeds: jax.Array
    seen: jax.Array


EMPTY = {"prompts": None, "answers": None}  # a cache without keys and values
ROW_FIELDS = ("tokens", "positions", "active", "seeds", "seen")

# Prompts with their answers lie over `data`.
ROWS, STORED = PartitionSpec("data"), PartitionSpec(None, "data")
ENTERED_SPECS = Entered(prompts=STORED, lengths=ROWS, finite=ROWS, **dict.fromkeys(ROW_FIELDS, ROWS))
STATE_SPECS = DecodingState(
    cache=Cache(prompts=STORED, prompt_lengths=ROWS, answers=STORED, valid=ROWS),
    made=ROWS,
    slot=PartitionSpec(),
    **dict.fromkeys(ROW_FIELDS, ROWS),
)


class OnMesh:
    """`empty_state`, `insert` and `take` of states that lie over a mesh as `STATE_SPECS` says.

    Left to themselves, XLA's programs may hold all prompts on every device, which then computes all answers.
    """

    def __init__(self, mesh: Mesh):
        self.laid, self.entered = jax.tree.map(partial(NamedSharding, mesh), (STATE_SPECS, ENTERED_SPECS))
        laid = self.laid
        self.empty_state = jax.jit(empty_state, static_argnums=(1, 2, 3), out_shardings=laid)
        self.insert = jax.jit(insert, donate_argnums=0, out_shardings=laid)
        self._take_rows = jax.jit(take_rows, out_shardings=laid.replace(cache=laid.cache.replace(**EMPTY)))
        self._take_stored = jax.jit(
            each_by_itself(mesh, take_stored, (STORED, ROWS), STORED),
            out_shardings=NamedSharding(mesh, STORED),
        )
        self.parts = mesh.shape["data"]

    def take(self, state: DecodingState, places: jax.Array) -> DecodingState:
        """The state of the prompts in `places` (Q,) with their answers, out of `state`, which is given up
        array by array, since two of it at once might not fit. Each part of the mesh's `data` keeps its own:
        as many of the places are in the first part as in the second, and so on, in this order."""
        within = places % (state.cache.prompt_lengths.shape[0] // self.parts)

        def taken(leaf):
            part = jax.block_until_ready(self._take_stored(leaf, within))
            leaf.delete()
            return part

        cache = state.cache
        small = self._take_rows(state.replace(cache=cache.replace(**EMPTY)), places)
        prompts, answers = (jax.tree.map(taken, store) for store in (cache.prompts, cache.answers))
        return small.replace(cache=small.cache.replace(prompts=prompts, answers=answers))


@partial(jax.jit, static_argnums=(1, 2, 3))
def empty_state(entered: Entered, queries: int, width: int, slots: int) -> DecodingState:
    """A state of idle places for `queries` prompts of at most `width` tokens, with room for `slots` tokens an
    answer."""
    samples = entered.tokens.shape[0] // entered.lengths.shape[0]
    cache, size = Cache.empty(entered.prompts, queries, width, samples, slots), queries * samples
    rows = {
        name: jnp.zeros((size, *getattr(entered, name).shape[1:]), getattr(entered, name).dtype)
        for name in ROW_FIELDS
    }
    made, slot = jnp.zeros((size,), jnp.int32), jnp.zeros((), jnp.int32)
    return DecodingState(cache=cache, made=made, slot=slot, **rows)


@partial(jax.jit, donate_argnums=0)
def insert(state: DecodingState, entered: Entered, places: jax.Array) -> DecodingState:
    """Puts prefilled prompts into `places` (Q,) with their answers; a place outside the batch drops its
    prompt."""
    rows = _rows(state, places)

    def put_prompt(old, fresh):
        return old.at[:, places, :, : fresh.shape[3]].set(fresh, mode="drop")

    def put(old, fresh):
        return old.at[rows].set(fresh, mode="drop")

    cache = state.cache.replace(
        prompts=jax.tree.map(put_prompt, state.cache.prompts, entered.prompts),
        prompt_lengths=state.cache.prompt_lengths.at[places].set(entered.lengths, mode="drop"),
        valid=state.cache.valid.at[rows].set(False, mode="drop"),
    )
    fields = {name: put(getattr(state, name), getattr(entered, name)) for name in ROW_FIELDS}
    made = put(state.made, jnp.ones_like(entered.tokens))
    return DecodingState(cache=cache, made=made, slot=state.slot, **fields)


def resize(state: DecodingState, width: int, slots: int) -> DecodingState:
    """The state with another width of the prompts and number of slots for answers; what lies beyond a smaller
    one is unused."""
    cache = state.cache
    if width != cache.prompts.keys.shape[3]:
        cache = cache.replace(prompts=_widened(cache.prompts, width))
    if slots == cache.valid.shape[1]:
        return state.replace(cache=cache)
    answers, valid, slot = _reordered(cache.answers, cache.valid, state.slot, slots)
    return state.replace(cache=cache.replace(answers=answers, valid=valid), slot=slot)


@partial(jax.jit, static_argnums=1)
def _widened(prompts: KeysValues, width: int) -> KeysValues:
    return jax.tree.map(lambda leaf: _fit(leaf, 3, width), prompts)


@partial(jax.jit, static_argnums=3)
def _reordered(
    answers: KeysValues, valid: jax.Array, slot: jax.Array, slots: int
) -> tuple[KeysValues, jax.Array, jax.Array]:
    """The answers' last `slots` slots in the order in which they were written, or all and room behind them;
    with `valid` and the next slot.

    Example: of four slots, written in the order 2 3 0 1 with slot 2 the next, eight hold 2 3 0 1 and four
    empty ones, of which the first is the next; two hold 0 1, and the first of them is the next.
    """
    have = valid.shape[1]
    kept = min(have, slots)
    order = (slot - kept + jnp.arange(kept)) % have

    def last(leaf, axis):
        return _fit(jnp.take(leaf, order, axis=axis), axis, slots)

    return jax.tree.map(lambda leaf: last(leaf, 4), answers), last(valid, 1), jnp.int32(kept % slots)


def _fit(leaf: jax.Array, axis: int, size: int) -> jax.Array:
    if leaf.shape[axis] >= size:
        return jax.lax.slice_in_dim(leaf, 0, size, axis=axis)
    return jnp.pad(leaf, [(0, size - n if i == axis else 0) for i, n in enumerate(leaf.shape)])


def take_rows(state: DecodingState, places: jax.Array) -> DecodingState:
    """All of a state but its keys and values, of which it has none, for the prompts in `places` (Q,)."""
    rows = _rows(state, places)
    cache = state.cache.replace(
        prompt_lengths=state.cache.prompt_lengths[places], valid=state.cache.valid[rows]
    )
    fields = {name: getattr(state, name)[rows] for name in ROW_FIELDS}
    return DecodingState(cache=cache, made=state.made[rows], slot=state.slot, **fields)


def take_stored(leaf: jax.Array, places: jax.Array) -> jax.Array:
    """Keys or values (L, Q, ...) of the prompts in `places` (Q,)."""
    return leaf.at[:, places].get(mode="promise_in_bounds")


def _rows(state: DecodingState, places: jax.Array) -> jax.Array:
    """The answers' rows of the prompts in `places` (Q,): int32 (Q·U,)."""
    samples = state.tokens.shape[0] // state.cache.prompt_lengths.shape[0]
    return (places[:, None] * samples + jnp.arange(samples)).reshape(-1)
