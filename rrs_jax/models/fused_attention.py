"""The attention of new tokens to prompts and answers in one kernel (Pallas, for an NVIDIA GPU).

Each program serves one prompt and one key head: all queries of the prompt's answers are one tile, to which
the prompt's keys and then the answers' are shown block by block, each read once, with a running softmax
(Milakov and Gimelshein 2018). An answer's queries meet the other answers' keys too, since a tile costs a
tensor core the same with one row or sixteen; they count for nothing. The kernel takes the whole stack of
layers and a layer's number: what the scan over layers cuts out of a stack would be copied for it.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from rrs_jax.models.cache import Cache, KeysValues

BLOCK, WARPS, STAGES = 64, 4, 3  # keys at once, warps of a program, blocks in flight
LEAST_ROWS = 16  # of a tensor core's tile


def serves(cache_dtype, head_dim: int, devices: int) -> bool:
    """True where decoding takes the kernel: on GPUs, keys and values in 16 or 8 bit, heads of a power of two.
    It is not cut over several `devices`; each may run one of its own."""
    narrow = jnp.dtype(cache_dtype) in (jnp.bfloat16, jnp.float16, jnp.int8)
    whole = head_dim >= LEAST_ROWS and head_dim & (head_dim - 1) == 0
    return jax.default_backend() == "gpu" and devices == 1 and narrow and whole


def fused_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: Cache,
    layer: jax.Array,
    slot: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, KeysValues]:
    """Attention of new tokens in the layer with number `layer` (int32) of the cache's stacks, (B, H, E), and
    the answers of `cache` with the new tokens in `slot` (int32) of that layer.

    The attention is that of `rrs_jax.models.cache.cached_attention`: q (B, H, E), k and v (B, K, E) are the
    new tokens'. The answers' memory is that of `cache.answers`; what `slot` held is not attended to. Products
    are summed up in float32, the softmax is float32. `interpret` runs the kernel's operations one by one, on
    any device.
    """
    layers, queries, heads, n, slots, size = cache.answers.keys.shape
    groups = q.shape[1] // heads
    rows = max(LEAST_ROWS, pl.next_power_of_2(n * groups))
    kernel = functools.partial(_kernel, n=n, groups=groups, heads=heads, slots=slots, rows=rows)
    new = KeysValues.of(k, v, cache.answers.keys.dtype)
    # A program finds its answers' slots in one row, the new tokens and queries as rows of vectors.
    answers = jax.tree.map(
        lambda leaf: leaf.reshape(layers, queries, heads, n * slots, *leaf.shape[5:]), cache.answers
    )
    q_rows, k_rows, v_rows, new = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (q, k, v, new))
    inputs = (
        jnp.stack([layer, slot]),
        cache.prompt_lengths,
        cache.valid.reshape(queries, n * slots),
        q_rows,
        k_rows,
        v_rows,
        new,
        cache.prompts,
        answers,
    )
    first = len(jax.tree.leaves(inputs)) - len(jax.tree.leaves(answers))
    attended, answers = pl.pallas_call(
        kernel,
        grid=(queries, heads),
        interpret=interpret,
        name="decoding_attention",
        out_shape=(
            jax.ShapeDtypeStruct(q_rows.shape, q.dtype),
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), answers),
        ),
        input_output_aliases={first + i: 1 + i for i in range(len(jax.tree.leaves(answers)))},
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
    )(*inputs)
    return attended.reshape(q.shape), jax.tree.map(
        lambda leaf, old: leaf.reshape(old.shape), answers, cache.answers
    )


def _kernel(
    numbers,
    lengths,
    valid,
    q,
    k,
    v,
    new: KeysValues,
    prompts: KeysValues,
    answers: KeysValues,
    out,
    written: KeysValues,
    *,
    n: int,
    groups: int,
    heads: int,
    slots: int,
    rows: int,
):
    query, head, layer, slot = pl.program_id(0), pl.program_id(1), numbers[0], numbers[1]
    row = jnp.arange(rows)
    answer = jnp.minimum(row // groups, n - 1)  # rows beyond the last are those of the last answer again
    place = ((query * n + answer) * heads + head) * groups + row % groups
    own = (query * n + answer) * heads + head
    size = q.shape[-1]
    scale = size**-0.5
    queries = plgpu.load(q.at[_vectors(place, size)])

    def read(vectors, scales, column, real):
        """This layer's vectors in columns `column` (BLOCK,), zero where not `real`, in q's dtype; and their
        scales."""
        mask = jnp.broadcast_to(real[:, None], (BLOCK, size))
        block = plgpu.load(vectors.at[layer, query, head, *_vectors(column, size)], mask=mask, other=0)
        if scales is not None:
            scales = plgpu.load(scales.at[layer, query, head, column], mask=real, other=0)[None, :]
        return block.astype(queries.dtype), scales

    def add(carry, store, column, real, shown):
        """The carry behind one more block of keys, of which those `shown` (rows, BLOCK) count."""
        top, total, attended = carry
        block, steps = read(store.keys, store.key_scales, column, real)
        scores = jax.lax.dot_general(
            queries, block, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        scores = scores * scale if steps is None else scores * (steps * scale)
        scores = jnp.where(shown, scores, -jnp.inf)
        raised = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, faded = jnp.exp(scores - raised[:, None]), jnp.exp(top - raised)
        total = total * faded + jnp.sum(weights, axis=1)
        block, steps = read(store.values, store.value_scales, column, real)
        weights = (weights if steps is None else weights * steps).astype(block.dtype)
        more = jax.lax.dot_general(
            weights, block, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return raised, total, attended * faded[:, None] + more

    def prompt_block(i, carry):
        column = i * BLOCK + jnp.arange(BLOCK)
        real = column < length
        return add(carry, prompts, column, real, jnp.broadcast_to(real[None, :], (rows, BLOCK)))

    def answer_block(i, carry):
        column = i * BLOCK + jnp.arange(BLOCK)
        real = (column < n * slots) & (column % slots != slot)
        real = real & plgpu.load(valid.at[query, jnp.minimum(column, n * slots - 1)])
        shown = real[None, :] & (answer[:, None] == (column // slots)[None, :])
        return add(carry, answers, column, real, shown)

    # The softmax starts with the token itself, so it is never empty.
    top = (
        jnp.sum(
            queries.astype(jnp.float32) * plgpu.load(k.at[_vectors(own, size)]).astype(jnp.float32), axis=1
        )
        * scale
    )
    carry = top, jnp.ones((rows,), jnp.float32), plgpu.load(v.at[_vectors(own, size)]).astype(jnp.float32)
    length = lengths[query]
    carry = jax.lax.fori_loop(0, (length + BLOCK - 1) // BLOCK, prompt_block, carry)
    _, total, attended = jax.lax.fori_loop(0, math.ceil(n * slots / BLOCK), answer_block, carry)
    plgpu.store(out.at[_vectors(place, size)], (attended / total[:, None]).astype(out.dtype))
    column = answer * slots + slot
    for fresh, kept in ((new.keys, written.keys), (new.values, written.values)):
        plgpu.store(
            kept.at[layer, query, head, *_vectors(column, size)], plgpu.load(fresh.at[_vectors(own, size)])
        )
    for fresh, kept in ((new.key_scales, written.key_scales), (new.value_scales, written.value_scales)):
        if fresh is not None:
            plgpu.store(kept.at[layer, query, head, column], plgpu.load(fresh.at[own]))


def _vectors(places: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Two indices, (len(places), size) each, that pick the whole vectors in `places`."""
    shape = len(places), size
    return jnp.broadcast_to(places[:, None], shape), jnp.broadcast_to(jnp.arange(size)[None], shape)
