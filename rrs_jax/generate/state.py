"""All answers in flight, and how places among them are filled, widened and given up."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from rrs_jax.models.cache import Cache, Store


@flax.struct.dataclass
class DecodingState:
    """Q prompts with n answers each, B = Q·n rows in this order. `tokens` were chosen last and are not in the
    cache yet."""

    cache: Cache
    tokens: jax.Array  # int32 (B,)
    positions: jax.Array  # int32 (B,): where `tokens` stand
    made: jax.Array  # int32 (B,): tokens chosen so far
    active: jax.Array  # bool (B,)
    seeds: jax.Array  # uint32 (B,)
    seen: jax.Array  # bool (B, V), or (B, 1) where nothing asks for it
    slot: jax.Array  # int32: of the answers' cache, where the next tokens go


@flax.struct.dataclass
class Entered:
    """Prefilled prompts: keys and values (L, q, K, T, H), lengths (q,), and the rows of their answers, (q·n,)
    each."""

    prompts: Store
    lengths: jax.Array
    tokens: jax.Array
    positions: jax.Array
    active: jax.Array
    seeds: jax.Array
    seen: jax.Array


ROW_FIELDS = ("tokens", "positions", "active", "seeds", "seen")


@partial(jax.jit, static_argnums=(1, 2, 3))
def empty_state(entered: Entered, queries: int, width: int, slots: int) -> DecodingState:
    """Places for as many prompts of at most `width` tokens, all idle, with room for `slots` tokens an
    answer."""
    n = entered.tokens.shape[0] // entered.lengths.shape[0]

    cache = Cache.empty(entered.prompts, queries, width, n, slots)
    rows = {
        name: jnp.zeros((queries * n, *getattr(entered, name).shape[1:]), getattr(entered, name).dtype)
        for name in ROW_FIELDS
    }
    made, slot = jnp.zeros((queries * n,), jnp.int32), jnp.zeros((), jnp.int32)
    return DecodingState(cache=cache, made=made, slot=slot, **rows)


@partial(jax.jit, donate_argnums=0)
def insert(state: DecodingState, entered: Entered, places: jax.Array) -> DecodingState:
    """Puts prefilled prompts into `places` (q,) with their answers; a place outside the batch drops its
    prompt."""
    n = state.tokens.shape[0] // state.cache.prompt_lengths.shape[0]
    rows = (places[:, None] * n + jnp.arange(n)).reshape(-1)

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
    """Another width of the prompts and number of slots for answers; what lies beyond a smaller one is
    unused."""
    cache = state.cache
    if width != cache.prompts.keys.shape[3]:
        cache = cache.replace(prompts=_widened(cache.prompts, width))
    if slots == cache.valid.shape[1]:
        return state.replace(cache=cache)
    answers, valid, slot = _reordered(cache.answers, cache.valid, state.slot, slots)
    return state.replace(cache=cache.replace(answers=answers, valid=valid), slot=slot)


@partial(jax.jit, static_argnums=1)
def _widened(prompts: Store, width: int) -> Store:
    return jax.tree.map(lambda leaf: _fit(leaf, 3, width), prompts)


@partial(jax.jit, static_argnums=3)
def _reordered(
    answers: Store, valid: jax.Array, slot: jax.Array, slots: int
) -> tuple[Store, jax.Array, jax.Array]:
    """The last `slots` slots in the order in which they were written, or all and room behind them."""
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


@jax.jit
def take(state: DecodingState, places: jax.Array) -> DecodingState:
    """The prompts in `places` (q,) with their answers."""
    n = state.tokens.shape[0] // state.cache.prompt_lengths.shape[0]
    rows = (places[:, None] * n + jnp.arange(n)).reshape(-1)
    cache = Cache(
        jax.tree.map(lambda leaf: leaf[:, places], state.cache.prompts),
        state.cache.prompt_lengths[places],
        jax.tree.map(lambda leaf: leaf[:, places], state.cache.answers),
        state.cache.valid[rows],
    )
    fields = {name: getattr(state, name)[rows] for name in ROW_FIELDS}
    return DecodingState(cache=cache, made=state.made[rows], slot=state.slot, **fields)
