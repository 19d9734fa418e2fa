"""Batches of few shapes and little padding."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

if TYPE_CHECKING:  # jax is needed by `collate` alone
    from rrs_jax.models.batch import Batch

# A prompt: token ids, each clip's first row in the audio bank, each clip's number of audio tokens.
EncodedPrompt = tuple[list[int], Sequence[int], Sequence[int]]


class Selection(NamedTuple):
    """The samples of one batch. A short batch is filled by repeating its samples with weight 0."""

    indices: np.ndarray  # int32 (B,) into the data set
    weights: np.ndarray  # float32 (B,), 1 for a sample and 0 for filling
    length: int  # the bucket that holds the longest sample


def bucket_lengths(
    lengths: Sequence[int],
    max_buckets: int = 5,
    multiple: int = 8,
    maximum: int | None = None,
    price: float = 0.0,
) -> tuple[int, ...]:
    """At most `max_buckets` rising sizes, multiples of `multiple`, with the least total padding of `lengths`.

    The last one holds the longest sample. `price`: positions of padding that each further size has to save,
    since each is a compilation (`rrs_jax.models.flops.program_price`). `maximum` (the encoder's 3000 frames)
    caps a size that rounding up would carry beyond it. Exact, by dynamic programming over the distinct
    rounded lengths.
    """
    if not len(lengths) or max_buckets < 1:
        raise ValueError(
            f"bucket_lengths needs lengths and at least one bucket, got {len(lengths)} and {max_buckets}"
        )
    rounded = -(-np.asarray(lengths, np.int64) // multiple) * multiple
    if maximum is not None:
        rounded = np.minimum(rounded, maximum)
        if max(lengths) > maximum:
            raise ValueError(f"a length of {max(lengths)} is above the maximum {maximum}")
    sizes, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # samples among the first i sizes
    # The sum of the lengths does not depend on the choice, so the rows' total size is minimised.
    # cost[i]: least total of the first i sizes with the buckets so far.
    # choices[k][i]: the first size that the last of k + 1 buckets takes, where size i is its last.
    cost = np.full(len(sizes) + 1, np.inf)
    cost[0] = 0.0
    choices, prices = [], []
    for number in range(min(max_buckets, len(sizes))):
        # [last size, first size]
        totals = cost[None, :-1] + (below[1:, None] - below[None, :-1]) * sizes[:, None]
        totals = np.where(np.tri(len(sizes), dtype=bool), totals, np.inf)
        choices.append(totals.argmin(axis=1))
        cost = np.concatenate([[np.inf], totals.min(axis=1)])
        prices.append(cost[-1] + price * number)
    # Without a price more buckets up to the number of sizes never cost more, and the most are used.
    used = len(prices) - int(np.argmin(prices[::-1]))
    buckets, end = [], len(sizes)
    for choice in reversed(choices[:used]):
        buckets.append(int(sizes[end - 1]))
        end = choice[end - 1]
    return tuple(reversed(buckets))


def fixed_lengths(lengths: Iterable[int]) -> tuple[int, ...]:
    """The sizes that hold `lengths`, out of sizes 32 apart up to 256 and then four to each doubling. These do
    not depend on the data, so that other questions need no other compilation."""

    def size(length: int) -> int:
        step = 32 * max(1, 2 ** ((length - 1) // 128).bit_length() // 2)
        return -(-length // step) * step

    return tuple(sorted({size(length) for length in lengths}))


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `length`; ValueError where none does."""
    position = int(np.searchsorted(buckets, length))
    if position == len(buckets):
        raise ValueError(f"a length of {length} is above the largest bucket {buckets[-1]}")
    return int(buckets[position])


def make_batches(
    lengths: Sequence[int], batch_size: int, seed: int, buckets: Sequence[int]
) -> list[Selection]:
    """Batches of one epoch: every sample once, in random batches of one bucket, the batches in random order.

    Where a bucket's samples do not fill its last batch, some of the next smaller one join them. So there are
    ceil(N / batch_size) batches, and the filling, if any, is of the smallest size. Every epoch needs its own
    seed.
    """
    random = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    order = random.permutation(len(lengths))
    bucket = np.array([bucket_of(length, buckets) for length in lengths[order]])
    batches = _cut(order[np.argsort(-bucket, kind="stable")], lengths, batch_size, buckets)
    return [batches[i] for i in random.permutation(len(batches))]


def batches_in_buckets(lengths: Sequence[int], batch_size: int, buckets: Sequence[int]) -> list[Selection]:
    """Batches for extraction or generation: every sample once, longest first, so that memory fails at once.

    `restore_order` brings the results back into the data set's order.
    """
    lengths = np.asarray(lengths)
    return _cut(np.argsort(-lengths, kind="stable"), lengths, batch_size, buckets)


def restore_order(batches: Sequence[Selection], results: Sequence[np.ndarray]) -> np.ndarray:
    """Results in the data set's order, (N, ...), out of those of each batch (B, ...), without the filling."""
    keep = [batch.weights > 0 for batch in batches]
    indices = np.concatenate([batch.indices[k] for batch, k in zip(batches, keep, strict=True)])
    values = np.concatenate([np.asarray(result)[k] for result, k in zip(results, keep, strict=True)])
    restored = np.empty_like(values)
    restored[indices] = values
    return restored


def collate(
    rows: Sequence[tuple[list[int], Sequence[int], Sequence[int]]],
    length: int,
    audio_token_id: int | Sequence[int],
) -> "Batch":
    """A Batch (B, length) of NumPy arrays.

    A row is (token ids, each clip's first row in the audio bank, each clip's number of tokens). The bank's
    rows take the places of `audio_token_id`, one id or several. A row is padded on the right with id 0, which
    `Batch.lengths` masks. Raises ValueError where a row's audio tokens are not as many as its clips have, or
    a row is longer than `length`.
    """
    from rrs_jax.models.batch import Batch

    input_ids = np.zeros((len(rows), length), np.int32)
    audio_index = np.full((len(rows), length), -1, np.int32)
    for row, (ids, offsets, counts) in enumerate(rows):
        if len(ids) > length:
            raise ValueError(f"row {row} has {len(ids)} tokens, the batch is {length} long")
        input_ids[row, : len(ids)] = ids
        positions = np.flatnonzero(np.isin(ids, audio_token_id))
        bank_rows = [np.arange(start, start + count) for start, count in zip(offsets, counts, strict=True)]
        bank_rows = np.concatenate(bank_rows) if bank_rows else np.empty(0, np.int32)
        if len(positions) != len(bank_rows):
            raise ValueError(f"row {row} has {len(positions)} audio tokens, its clips have {len(bank_rows)}")
        audio_index[row, positions] = bank_rows
    return Batch(
        input_ids=input_ids,
        lengths=np.array([len(ids) for ids, _, _ in rows], np.int32),
        audio_index=audio_index,
    )


def _cut(order: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: Sequence[int]) -> list[Selection]:
    batches = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        weights = np.zeros(batch_size, np.float32)
        weights[: len(chosen)] = 1.0
        indices = np.resize(chosen, batch_size).astype(np.int32)  # repeats from the start
        batches.append(Selection(indices, weights, bucket_of(lengths[chosen].max(), buckets)))
    return batches


def pad_rows(tree, multiple: int):
    """The tree with the last row of every array repeated until the rows are a multiple, as the mesh wants
    them."""

    def pad(array):
        missing = -array.shape[0] % multiple
        return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array

    return jax.tree.map(pad, tree)
