"""Buckets against brute force, batches against their definition."""

import itertools

import numpy as np
import pytest

from rrs_jax.inputs.batching import batches_in_buckets, bucket_lengths, collate, make_batches, restore_order
from rrs_jax.inputs.mel import audio_token_count, feature_length

AUDIO = 7


def realistic_lengths(samples: int, seed: int) -> np.ndarray:
    """Prompt lengths of clips of 1.5 to 6 s, log-normal, with 45 tokens of template and text."""
    seconds = np.clip(np.random.default_rng(seed).lognormal(np.log(3.0), 0.35, samples), 1.5, 6.0)
    return np.array([audio_token_count(feature_length(int(s * 16_000))) for s in seconds]) + 45


def total(lengths, buckets) -> int:
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


@pytest.mark.parametrize("max_buckets", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("multiple", [1, 4, 8])
@pytest.mark.parametrize("price", [0, 25, 120, 10**6])
def test_buckets_cost_the_least_of_all_choices(max_buckets, multiple, price):
    for seed in range(6):
        lengths = np.random.default_rng(seed).choice([3, 8, 9, 15, 24, 26, 40, 41, 63, 64], 30)
        buckets = bucket_lengths(lengths.tolist(), max_buckets, multiple, price=price)
        sizes = sorted({-(-int(n) // multiple) * multiple for n in lengths})
        choices = itertools.chain.from_iterable(
            itertools.combinations(sizes, k) for k in range(1, min(max_buckets, len(sizes)) + 1)
        )
        best = min(
            total(lengths, choice) + price * len(choice) for choice in choices if choice[-1] == sizes[-1]
        )
        assert total(lengths, buckets) + price * len(buckets) == best
        assert price < 10**6 or len(buckets) == 1
        assert len(buckets) <= max_buckets and list(buckets) == sorted(set(buckets))
        assert all(bucket % multiple == 0 for bucket in buckets)


def test_buckets_of_encoder_frames_stop_at_the_maximum():
    assert bucket_lengths([2_990, 2_999, 3_000], 2, multiple=64, maximum=3_000)[-1] == 3_000
    with pytest.raises(ValueError, match="3001 is above the maximum 3000"):
        bucket_lengths([3_001], multiple=64, maximum=3_000)
    with pytest.raises(ValueError, match="needs lengths"):
        bucket_lengths([])


@pytest.mark.parametrize("samples", [200, 1_400])
def test_padding_stays_below_a_tenth_with_five_shapes(samples):
    lengths = realistic_lengths(samples, seed=1)
    buckets = bucket_lengths(lengths)
    epochs = [make_batches(lengths, 16, seed, buckets) for seed in range(5)]
    whole = [batches_in_buckets(lengths, 16, buckets)]
    for batches in epochs + whole:
        # The share without filling: 200 samples fill 12.5 batches, whatever the buckets are.
        rows = sum(batch.length * batch.weights.sum() for batch in batches)
        assert 1 - lengths.sum() / rows < 0.1
        assert len({batch.length for batch in batches}) <= 5
        if samples == 1_400:  # here the filling is few rows, so that the bound holds with it
            computed = sum(batch.length * len(batch.indices) for batch in batches)
            assert 1 - lengths.sum() / computed < 0.1


def check_covering(batches, lengths, batch_size, buckets):
    assert len(batches) == -(-len(lengths) // batch_size)
    for batch in batches:
        assert batch.indices.shape == batch.weights.shape == (batch_size,)
        assert batch.indices.dtype == np.int32 and batch.weights.dtype == np.float32
        longest = lengths[batch.indices].max()
        assert batch.length == min(bucket for bucket in buckets if bucket >= longest)
        real = batch.weights > 0
        assert set(batch.weights) <= {0.0, 1.0} and set(batch.indices[~real]) <= set(batch.indices[real])
    seen = np.concatenate([batch.indices[batch.weights > 0] for batch in batches])
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("samples", [1, 5, 16, 37, 200])
def test_every_sample_comes_once_an_epoch(samples):
    lengths = realistic_lengths(samples, seed=2)
    buckets = bucket_lengths(lengths, 3)
    for seed in range(3):
        check_covering(make_batches(lengths, 16, seed, buckets), lengths, 16, buckets)
    check_covering(batches_in_buckets(lengths, 16, buckets), lengths, 16, buckets)


def test_epochs_repeat_by_seed_and_differ_between_seeds():
    lengths = realistic_lengths(200, seed=3)
    buckets = bucket_lengths(lengths)

    def order(seed):
        return np.concatenate([batch.indices for batch in make_batches(lengths, 16, seed, buckets)])

    np.testing.assert_array_equal(order(0), order(0))
    assert (order(0) != order(1)).mean() > 0.9
    # The order of lengths is random too: no epoch runs from short to long.
    sizes = [[batch.length for batch in make_batches(lengths, 16, seed, buckets)] for seed in range(9)]
    assert sum(size == sorted(size) or size == sorted(size, reverse=True) for size in sizes) == 0


def test_a_length_above_all_buckets_is_an_error():
    with pytest.raises(ValueError, match="99 is above the largest bucket 64"):
        make_batches([8, 99], 2, 0, (32, 64))


def test_results_return_to_the_data_sets_order():
    lengths = realistic_lengths(37, seed=4)
    batches = batches_in_buckets(lengths, 8, bucket_lengths(lengths))
    results = [np.stack([batch.indices, lengths[batch.indices]], axis=1) for batch in batches]
    np.testing.assert_array_equal(restore_order(batches, results), np.stack([np.arange(37), lengths], axis=1))
    assert batches[0].length == max(batch.length for batch in batches)


def test_collate_points_audio_tokens_at_their_bank_rows():
    rows = [
        (
            [1, AUDIO, AUDIO, 2, AUDIO, AUDIO, AUDIO, 3],
            [10, 4],
            [2, 3],
        ),  # two clips, the second earlier in the bank
        ([5, 6], [], []),
        ([AUDIO, AUDIO, 9], [0], [2]),
    ]
    batch = collate(rows, 9, AUDIO)
    assert batch.input_ids.dtype == batch.lengths.dtype == batch.audio_index.dtype == np.int32
    np.testing.assert_array_equal(batch.lengths, [8, 2, 3])
    np.testing.assert_array_equal(
        batch.input_ids,
        [[1, 7, 7, 2, 7, 7, 7, 3, 0], [5, 6, 0, 0, 0, 0, 0, 0, 0], [7, 7, 9, 0, 0, 0, 0, 0, 0]],
    )
    np.testing.assert_array_equal(
        batch.audio_index, [[-1, 10, 11, -1, 4, 5, 6, -1, -1], [-1] * 9, [0, 1] + [-1] * 7]
    )


@pytest.mark.parametrize(
    "row, message",
    [
        (([1, AUDIO, AUDIO], [0], [3]), "row 1 has 2 audio tokens, its clips have 3"),
        (([1, AUDIO, AUDIO], [], []), "row 1 has 2 audio tokens, its clips have 0"),
        (([1, 2], [0], [2]), "row 1 has 0 audio tokens, its clips have 2"),
        (([1] * 5, [], []), "row 1 has 5 tokens, the batch is 4 long"),
        (([1, AUDIO], [0, 1], [1]), "zip"),
    ],
)
def test_collate_refuses_rows_that_do_not_fit(row, message):
    with pytest.raises(ValueError, match=message):
        collate([([1], [], []), row], 4, AUDIO)
