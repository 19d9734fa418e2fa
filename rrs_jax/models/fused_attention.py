"""The attention of new tokens to prompts and answers in one kernel (Pallas, for an NVIDIA GPU).

Each program serves one prompt and one key head: all queries of the prompt's answers are one tile, to which the
prompt's keys and then the answers' are shown block by block, each read once, with a running softmax (Milakov and
Gimelshein 2018). An answer's queries meet the other answers' keys too, since a tile costs a tensor core the same with
one row or sixteen; they count for nothing. The kernel takes the whole stack of layers and a layer's number: what the
scan over layers cuts out of a stack would be copied for it.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from rrs_jax.models.cache import Cache

BLOCK, WARPS, STAGES = 64, 4, 3  # keys at once, warps of a program, blocks in flight
LEAST_ROWS = 16  # of a tensor core's tile


def serves(cache_dtype, head_dim: int, devices: int) -> bool:
    """Whether decoding takes the kernel: one GPU, keys and values in 16 bit, heads of a power of two. The kernel is
    not cut over several devices, and reads no 8 bit."""
    sixteen_bit = jnp.dtype(cache_dtype) in (jnp.bfloat16, jnp.float16)
    whole = head_dim >= LEAST_ROWS and head_dim & (head_dim - 1) == 0
    return jax.default_backend() == "gpu" and devices == 1 and sixteen_bit and whole


def fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache, layer: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """As `rrs_jax.models.cache.cached_attention`, of the layer with number `layer` (int32) of the cache's stacks.

    q (B, N, H), k and v (B, K, H) are the new tokens'; returns (B, N, H). Products are summed up in float32, the softmax
    is float32. `interpret` runs the kernel's operations one by one, on any device.
    """
    layers, queries, heads, n, slots, size = cache.answers.keys.shape
    groups = q.shape[1] // heads
    rows = max(LEAST_ROWS, pl.next_power_of_2(n * groups))
    kernel = functools.partial(_kernel, n=n, groups=groups, heads=heads, slots=slots, rows=rows)
    answers = [x.reshape(layers, queries, heads, n * slots, size) for x in (cache.answers.keys, cache.answers.values)]
    attended = pl.pallas_call(
        kernel, grid=(queries, heads), out_shape=jax.ShapeDtypeStruct((q.shape[0] * q.shape[1], size), q.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES), interpret=interpret,
        name="decoding_attention",
    )(
        layer.reshape(1), cache.prompt_lengths, cache.valid.reshape(queries, n * slots),
        q.reshape(-1, size), k.reshape(-1, size), v.reshape(-1, size), cache.prompts.keys, cache.prompts.values, *answers,
    )  # fmt: skip
    return attended.reshape(q.shape)


def _kernel(
    layer, lengths, valid, q, k, v, prompt_keys, prompt_values, answer_keys, answer_values, out, *,
    n: int, groups: int, heads: int, slots: int, rows: int,
):  # fmt: skip
    query, head, layer = pl.program_id(0), pl.program_id(1), layer[0]
    row = jnp.arange(rows)
    answer = jnp.minimum(row // groups, n - 1)  # rows beyond the last are those of the last answer again
    place = ((query * n + answer) * heads + head) * groups + row % groups
    own = (query * n + answer) * heads + head
    size = q.shape[-1]
    scale = size**-0.5
    queries = plgpu.load(q.at[_vectors(place, size)])

    def add(carry, keys, values, column, real, shown):
        """One block of keys: of this layer's columns `column` those that are `real` (BLOCK,) are read, and those `shown`
        (rows, BLOCK) count."""
        top, total, attended = carry
        mask = jnp.broadcast_to(real[:, None], (BLOCK, size))
        block = plgpu.load(keys.at[layer, query, head, *_vectors(column, size)], mask=mask, other=0)
        scores = jax.lax.dot_general(queries, block, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        scores = jnp.where(shown, scores * scale, -jnp.inf)
        raised = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, faded = jnp.exp(scores - raised[:, None]), jnp.exp(top - raised)
        block = plgpu.load(values.at[layer, query, head, *_vectors(column, size)], mask=mask, other=0)
        more = jax.lax.dot_general(
            weights.astype(block.dtype), block, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return raised, total * faded + jnp.sum(weights, axis=1), attended * faded[:, None] + more

    def prompt_block(i, carry):
        column = i * BLOCK + jnp.arange(BLOCK)
        real = column < length
        return add(carry, prompt_keys, prompt_values, column, real, jnp.broadcast_to(real[None, :], (rows, BLOCK)))

    def answer_block(i, carry):
        column = i * BLOCK + jnp.arange(BLOCK)
        real = (column < n * slots) & plgpu.load(valid.at[query, jnp.minimum(column, n * slots - 1)])
        shown = real[None, :] & (answer[:, None] == (column // slots)[None, :])
        return add(carry, answer_keys, answer_values, column, real, shown)

    # The softmax starts with the token itself, so it is never empty.
    top = jnp.sum(queries.astype(jnp.float32) * plgpu.load(k.at[_vectors(own, size)]).astype(jnp.float32), axis=1) * scale
    carry = top, jnp.ones((rows,), jnp.float32), plgpu.load(v.at[_vectors(own, size)]).astype(jnp.float32)
    length = lengths[query]
    carry = jax.lax.fori_loop(0, (length + BLOCK - 1) // BLOCK, prompt_block, carry)
    _, total, attended = jax.lax.fori_loop(0, math.ceil(n * slots / BLOCK), answer_block, carry)
    plgpu.store(out.at[_vectors(place, size)], (attended / total[:, None]).astype(out.dtype))


def _vectors(places: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Indices of whole vectors, those in `places` (n,): two of (n, size)."""
    shape = len(places), size
    return jnp.broadcast_to(places[:, None], shape), jnp.broadcast_to(jnp.arange(size)[None], shape)
