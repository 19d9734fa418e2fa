"""Prompts with common prefixes as trees, so that each prefix is computed once.

Example: three prompts with the same system tokens s, two of them with clip a and one with clip b.

    prompts          s s a a x          s s a a y y        s s b
    trees            prefix 4: s s a a, suffixes x and y y        prefix 3: s s b, one empty suffix
    shared prefix    s s, the beginning of all trees, is computed by itself and skipped in the rows:
    rows             a a x y y                                    b
      positions      2 3 4 4 5                                    2
      branches       0 0 1 2 2                                    0

A token of a suffix sees the prefix and its own suffix (`rrs_jax.models.decoder_pass.TreeLayout`), so that the
states of the second prompt are those of s s, a a and y y.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx

from rrs_jax.inputs.batching import EncodedPrompt, collate
from rrs_jax.models.batch import TreeBatch

# Tokens of a tree's suffixes: attention grows with the square of a tree's length, a prefix has about 100.
MOST_SUFFIX_TOKENS = 512


class Tree(NamedTuple):
    """Prompts of the same clips whose first `prefix` tokens are the same; the rest of each is its suffix."""

    rows: list[EncodedPrompt]
    prefix: int

    @property
    def length(self) -> int:
        """Tokens of the prefix and of all suffixes."""
        return self.prefix + sum(len(ids) - self.prefix for ids, _, _ in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for ids, _, _ in self.rows)


class Location(NamedTuple):
    """Tokens of a prompt among those of its tree: the first `prefix`, and `start` to `end`."""

    tree: int
    prefix: int
    start: int
    end: int


def prompt_key(row: EncodedPrompt) -> tuple:
    """A key under which equal prompts are found."""
    ids, offsets, _ = row
    return tuple(ids), tuple(offsets)


def make_trees(
    model: nnx.Module, rows: Sequence[EncodedPrompt], most: int = MOST_SUFFIX_TOKENS
) -> list[Tree]:
    """Trees of all different prompts: those of the same clips together, each without a clip by itself.

    Prompts whose suffixes have more than `most` tokens come in several trees, which repeat the prefix.
    """
    trees = []
    for rows_of_clips in _by_clips(model, rows):
        prefix = common_length([ids for ids, _, _ in rows_of_clips])
        taken: list[EncodedPrompt] = []
        for row in rows_of_clips:
            if taken and Tree([*taken, row], prefix).length > prefix + most:
                trees.append(Tree(taken, prefix))
                taken = []
            taken.append(row)
        trees.append(Tree(taken, prefix))
    return trees


def _by_clips(model: nnx.Module, rows: Sequence[EncodedPrompt]) -> list[list[EncodedPrompt]]:
    """Each different prompt once, grouped by clips and by how its positions are rotated."""
    kinds = model.language_model.angle_kinds(np.array([len(ids) for ids, _, _ in rows]))
    groups: dict[tuple, dict[tuple, EncodedPrompt]] = {}
    for row, kind in zip(rows, kinds.tolist(), strict=True):
        _, offsets, counts = row
        group = (tuple(offsets), tuple(counts), kind) if len(offsets) else prompt_key(row)
        groups.setdefault(group, {}).setdefault(prompt_key(row), row)
    return [list(members.values()) for members in groups.values()]


def common_length(sequences: Sequence[list[int]]) -> int:
    """Length of the longest prefix that all have: what the first and the last in order share, all between
    them share."""
    first, last = min(sequences), max(sequences)
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return len(first)


def shared_prefix_length(model: nnx.Module, trees: Sequence[Tree]) -> int:
    """Number of first tokens that all trees have in common, none of them a clip's.

    0 for a tree alone, or where not all prompts, and a prefix by itself, are rotated alike.
    """
    lengths = [tree.longest for tree in trees]
    if len(trees) < 2 or len({*model.language_model.angle_kinds(np.array([1, *lengths])).tolist()}) > 1:
        return 0
    ids = trees[0].rows[0][0]
    shared = common_length([tree.rows[0][0] for tree in trees])
    shared = min(shared, *(min(tree.prefix, tree.length - 1) for tree in trees))
    audio = np.flatnonzero(np.isin(ids[:shared], model.config.audio_token_id))
    return int(audio[0]) if len(audio) else shared


def locations(trees: Sequence[Tree]) -> dict[tuple, Location]:
    """Each prompt's tokens among those of its tree, by `prompt_key`."""
    found = {}
    for number, tree in enumerate(trees):
        start = tree.prefix
        for row in tree.rows:
            end = start + len(row[0]) - tree.prefix
            found[prompt_key(row)] = Location(number, tree.prefix, start, end)
            start = end
    return found


def collate_trees(
    trees: Sequence[Tree], length: int, audio_token_id: int | Sequence[int], skip: int = 0
) -> TreeBatch:
    """Trees without their first `skip` tokens as NumPy arrays (B, length).

    Raises ValueError as `collate` does, and for a tree that is longer.
    """
    shape = len(trees), length
    batch = TreeBatch(
        input_ids=np.zeros(shape, np.int32),
        audio_index=np.full(shape, -1, np.int32),
        positions=np.zeros(shape, np.int32),
        branches=np.zeros(shape, np.int32),
        lengths=np.array([tree.longest for tree in trees], np.int32),
    )
    for place, tree in enumerate(trees):
        if tree.length - skip > length:
            raise ValueError(f"tree {place} has {tree.length - skip} tokens, the batch is {length} long")
        prompts = collate(tree.rows, tree.longest, audio_token_id)
        # Row, first and last token, and branch of each part: the prefix of any row, then every suffix.
        parts = [(0, skip, tree.prefix, 0)]
        parts += [(row, tree.prefix, end, row + 1) for row, end in enumerate(prompts.lengths)]
        start = 0
        for row, first, end, branch in parts:
            here, tokens = (place, slice(start, start + end - first)), (row, slice(first, end))
            batch.input_ids[here] = prompts.input_ids[tokens]
            batch.audio_index[here] = prompts.audio_index[tokens]
            batch.positions[here], batch.branches[here] = np.arange(first, end), branch
            start += end - first
    return batch
