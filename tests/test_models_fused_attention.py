"""The attention kernel of decoding, its operations run one by one, against softmax attention in plain
NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrs_jax.models.cache import Cache, KeysValues
from rrs_jax.models.fused_attention import fused_attention, serves


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    "samples, key_heads, groups, size, slots",
    [(5, 4, 1, 128, 32), (1, 4, 1, 16, 16), (5, 2, 7, 64, 16), (3, 2, 3, 32, 64)],
)
def test_the_kernel_equals_softmax_attention(samples, key_heads, groups, size, slots, dtype):
    """Unequal prompts, one of a whole block and one of a single token, answers with gaps, one without a token
    so far; another layer's keys and values, and those in unused places, are far off. What it writes is the
    new tokens' alone.
    """
    rng = np.random.default_rng(0)
    lengths, layer, layers, width = [64, 1, 97], 1, 3, 97
    queries, rows = len(lengths), len(lengths) * samples

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q, k, v = draw(rows, key_heads * groups, size), draw(rows, key_heads, size), draw(rows, key_heads, size)
    prompts = [100 * draw(layers, queries, key_heads, width, size) for _ in range(2)]
    answers = [100 * draw(layers, queries, key_heads, samples, slots, size) for _ in range(2)]
    valid = rng.random((rows, slots)) < 0.6
    valid[1] = False
    slot = slots - 3
    valid[:, slot] = False
    for query, length in enumerate(lengths):
        for stack in prompts:
            stack[layer, query, :, :length] /= 100
    for row in range(rows):
        for stack in answers:
            stack[layer, row // samples, :, row % samples, valid[row]] /= 100
    stores = [KeysValues.of(*map(jnp.asarray, stacks), dtype) for stacks in (prompts, answers)]
    prompts, answers = map(numbers, stores)
    expected = np.zeros(q.shape)
    for row in range(rows):
        query, sample = divmod(row, samples)
        length = lengths[query]
        for head in range(key_heads * groups):
            of = head // groups
            keys, values = (
                np.concatenate(
                    [
                        p[layer, query, of, :length],
                        a[layer, query, of, sample, valid[row]],
                        new[row, of : of + 1],
                    ]
                )
                for p, a, new in zip(prompts, answers, (k, v), strict=True)
            )
            scores = np.exp(keys.astype(np.float64) @ q[row, head] / np.sqrt(size))
            expected[row, head] = scores @ values / scores.sum()
    # A slot that an answer which has ended left behind is not attended to, whatever it says of itself.
    left = jnp.asarray(valid).at[2 % rows, slot].set(True)
    cache = Cache(stores[0], jnp.asarray(lengths), stores[1], left)
    attended, written = fused_attention(
        *map(jnp.asarray, (q, k, v)), cache, jnp.int32(layer), jnp.int32(slot), interpret=True
    )
    np.testing.assert_allclose(attended, expected, atol=2e-5)
    for before, after, new in zip(answers, numbers(written), (k, v), strict=True):
        new = np.moveaxis(new.reshape(queries, samples, key_heads, size), 1, 2)
        assert np.abs(after[layer, :, :, :, slot] - new).max() <= (
            np.abs(new).max() / 250 if dtype == "int8" else 0
        )
        after[layer, :, :, :, slot] = before[layer, :, :, :, slot]
        np.testing.assert_array_equal(before, after)


def numbers(store: KeysValues) -> list[np.ndarray]:
    """Keys and values as they are meant."""
    pairs = (store.keys, store.key_scales), (store.values, store.value_scales)
    return [
        np.array(x if scales is None else x.astype(jnp.float32) * scales[..., None]) for x, scales in pairs
    ]


def test_the_kernel_serves_one_gpu_and_narrow_numbers(monkeypatch):
    assert not serves(jnp.bfloat16, 128, 1)  # the tests run on the CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert serves(jnp.bfloat16, 128, 1) and serves(jnp.float16, 64, 1)
    assert serves(jnp.int8, 128, 1) and not serves(jnp.float32, 128, 1)
    assert not serves(jnp.bfloat16, 96, 1) and not serves(jnp.bfloat16, 128, 2)
