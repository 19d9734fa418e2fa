"""Keys and values of prompts and answers, and the attention of one new token to them.

A prompt's keys and values are stored once and attended to by all its answers: with U answers a prompt the
step reads P + U·W slots instead of U·(P + W), and in place of the product of a matrix and a vector for each
answer there is one of two matrices.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


@flax.struct.dataclass
class KeysValues:
    """Keys and values (..., E) in the model's dtype; or int8 with a float32 scale (...) for each token and
    head."""

    keys: jax.Array
    values: jax.Array
    key_scales: jax.Array | None = None
    value_scales: jax.Array | None = None

    @classmethod
    def of(cls, keys: jax.Array, values: jax.Array, dtype) -> "KeysValues":
        """Keys and values (..., E) in `dtype`, rounded with scales for int8."""
        if jnp.dtype(dtype) != jnp.int8:
            return cls(keys.astype(dtype), values.astype(dtype))
        (keys, key_scales), (values, value_scales) = _quantised(keys), _quantised(values)
        return cls(keys, values, key_scales, value_scales)


@flax.struct.dataclass
class Cache:
    """Keys and values that a decoding step attends to: Q prompts with U answers each, B = Q·U rows in this
    order.

    All rows write their newest token into the same slot of the answers, one after the other and around: a
    write that every row makes at its own slot would be a scatter, for which XLA turns the whole cache over.

    Example: Q = 1 prompt of 3 tokens in P = 4 slots, U = 2 answers of W = 4 slots. The first answer has two
    tokens in the cache, the second, which was put in later, has one; `slot` comes to 2, where both write:

        prompts   p p p .        prompt_lengths [3]
        answers   a a . .        valid  [1 1 0 0]   the next step makes this  [1 1 1 0]
                  . b . .               [0 1 0 0]                             [0 1 1 0]

    Attributes:
      prompts: (L, Q, K, P, E), of which a prompt's first `prompt_lengths` (Q,) slots are real.
      answers: (L, Q, K, U, W, E), of which the slots `valid` (B, W) belong to the row's answer.
    """

    prompts: KeysValues
    prompt_lengths: jax.Array
    answers: KeysValues
    valid: jax.Array

    @classmethod
    def empty(cls, like: KeysValues, queries: int, width: int, samples: int, slots: int) -> "Cache":
        """An unused cache for `queries` prompts of `width` tokens with `samples` answers of `slots` each;
        `like` (L, B, K, T, E) gives the other sizes and the dtypes."""

        def zeros(leaf, *sizes):
            layers, _, heads, _, *size = leaf.shape
            return jnp.zeros((layers, queries, heads, *sizes, *size), leaf.dtype)

        return cls(
            prompts=jax.tree.map(lambda leaf: zeros(leaf, width), like),
            prompt_lengths=jnp.zeros((queries,), jnp.int32),
            answers=jax.tree.map(lambda leaf: zeros(leaf, samples, slots), like),
            valid=jnp.zeros((queries * samples, slots), bool),
        )

    def write(self, new: KeysValues, slot: jax.Array) -> "Cache":
        """The cache with one more token in every answer, of which `new` are keys and values (L, B, K, E)."""
        queries, samples = self.answers.keys.shape[1], self.answers.keys.shape[3]

        def put(old, fresh):
            fresh = fresh.reshape(len(fresh), queries, samples, *fresh.shape[2:])
            fresh = jnp.moveaxis(fresh, 2, 3)[:, :, :, :, None]
            return jax.lax.dynamic_update_slice_in_dim(old, fresh, slot, axis=4)

        return self.replace(answers=jax.tree.map(put, self.answers, new), valid=self.with_slot(slot))

    def with_slot(self, slot: jax.Array) -> jax.Array:
        """`valid` with `slot` in every answer."""
        return jax.lax.dynamic_update_slice_in_dim(
            self.valid, jnp.ones((len(self.valid), 1), bool), slot, axis=1
        )


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prompts: KeysValues,
    answers: KeysValues,
    prompt_lengths: jax.Array,
    valid: jax.Array,
) -> jax.Array:
    """One layer's attention of new tokens to their prompt, their answer so far and themselves: (B, H, E).

    q (B, H, E), k and v (B, K, E) are the new tokens'; prompts (Q, K, P, E), answers (Q, K, U, W, E).
    Products are summed up in float32, the softmax is float32.
    """
    (queries, heads, width), samples = prompts.keys.shape[:3], answers.keys.shape[2]
    groups, size = q.shape[1] // heads, q.shape[2]

    def by_head(x):  # (B, K, ...) to (Q, K, U, ...)
        return jnp.moveaxis(x.reshape(queries, samples, heads, *x.shape[2:]), 1, 2)

    prompts, answers = jax.tree.map(_row_major, (prompts, answers))
    # Barriers keep these from being computed again, and the sum over the keys from becoming a slow loop, in
    # the kernel that puts the scores together.
    q, k, v = jax.lax.optimization_barrier(
        (by_head(q.reshape(-1, heads, groups, size)), by_head(k), by_head(v))
    )
    to_prompt = jnp.einsum(
        "QKXE,QKPE->QKXP",  # X: all queries of a prompt's answers, U·G
        q.reshape(queries, heads, samples * groups, size),
        prompts.keys.astype(q.dtype),
        preferred_element_type=jnp.float32,
    ).reshape(queries, heads, samples, groups, width)
    to_answer = jax.lax.optimization_barrier(_inner(q, answers.keys.astype(q.dtype)))
    if prompts.key_scales is not None:
        to_prompt = to_prompt * prompts.key_scales[:, :, None, None]
        to_answer = to_answer * answers.key_scales[:, :, :, None]
    to_self = jnp.einsum("QKUGE,QKUE->QKUG", q, k, preferred_element_type=jnp.float32)[..., None]
    real_prompt = jnp.arange(width) < prompt_lengths[:, None, None, None, None]
    real_answer = valid.reshape(queries, 1, samples, 1, -1)
    scores = [
        jnp.where(real_prompt, to_prompt, -jnp.inf),
        jnp.where(real_answer, to_answer, -jnp.inf),
        to_self,
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, -1) * size**-0.5, axis=-1)
    for_prompt, for_answer, for_self = jnp.split(weights, (width, width + answers.keys.shape[3]), axis=-1)
    if prompts.value_scales is not None:
        for_prompt = for_prompt * prompts.value_scales[:, :, None, None]
        for_answer = for_answer * answers.value_scales[:, :, :, None]
    attended = jnp.einsum(
        "QKXP,QKPE->QKXE",
        for_prompt.astype(q.dtype).reshape(queries, heads, samples * groups, width),
        prompts.values.astype(q.dtype),
        preferred_element_type=jnp.float32,
    ).reshape(q.shape)
    attended = attended + _weighted(for_answer.astype(q.dtype), answers.values.astype(q.dtype))
    attended = attended + for_self * v[:, :, :, None].astype(jnp.float32)
    return jnp.moveaxis(attended.astype(q.dtype), 2, 1).reshape(queries * samples, heads * groups, size)


def _row_major(x: jax.Array) -> jax.Array:
    """x, for which XLA takes no other order of axes inside a loop: it would turn the whole cache over before
    and behind it."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _inner(q: jax.Array, keys: jax.Array) -> jax.Array:
    """Products of queries (..., G, E) with keys (..., W, E): float32 (..., G, W).

    With one query a key there is no matrix product to make: as a sum of products the compiler reads the keys
    where they lie, out of the stack of layers, and a product would copy them first.
    """
    if q.shape[-2] > 1:
        return jnp.einsum("...GE,...WE->...GW", q, keys, preferred_element_type=jnp.float32)
    return jnp.sum(q.astype(jnp.float32) * keys.astype(jnp.float32), axis=-1)[..., None, :]


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Sums of values (..., W, E) by weights (..., G, W): float32 (..., G, E); computed as in `_inner`."""
    if weights.shape[-2] > 1:
        return jnp.einsum("...GW,...WE->...GE", weights, values, preferred_element_type=jnp.float32)
    return jnp.sum(weights[..., 0, :, None].astype(jnp.float32) * values.astype(jnp.float32), axis=-2)[
        ..., None, :
    ]


def _quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vectors (..., E) as int8, in 127 steps up to the largest magnitude of each; and its step, float32
    (...)."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scales, 1e-30)[..., None]).astype(jnp.int8), scales
