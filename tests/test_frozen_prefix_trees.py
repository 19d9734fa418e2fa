"""Prompts with common prefixes as trees, and results that are read one behind."""

from types import SimpleNamespace

import numpy as np

from rrs_jax.frozen.overlap import one_behind
from rrs_jax.frozen.prefix_trees import collate_trees, locations, make_trees, prompt_key, shared_prefix_length

S, A, B, X, Y = 11, 1, 1, 21, 22  # tokens: system, clips a and b, two questions


def test_the_example_of_three_prompts():
    """The rows, positions and branches that the module's docstring shows."""
    prompts = [([S, S, A, A, X], [5], [2]), ([S, S, A, A, Y, Y], [5], [2]), ([S, S, B], [7], [1])]
    decoder = SimpleNamespace(angle_kinds=lambda lengths: np.zeros(len(lengths)))
    model = SimpleNamespace(language_model=decoder, config=SimpleNamespace(audio_token_id=A))
    trees = make_trees(model, [*prompts, prompts[0]])
    assert [(tree.prefix, len(tree.rows), tree.length) for tree in trees] == [(4, 2, 7), (3, 1, 3)]
    skip = shared_prefix_length(model, trees)
    assert skip == 2
    batch = collate_trees(trees, 5, A, skip)
    assert batch.input_ids.tolist() == [[A, A, X, Y, Y], [B, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[2, 3, 4, 4, 5], [2, 0, 0, 0, 0]]
    assert batch.branches.tolist() == [[0, 0, 1, 2, 2], [0, 0, 0, 0, 0]]
    assert batch.audio_index.tolist() == [[5, 6, -1, -1, -1], [7, -1, -1, -1, -1]]
    assert batch.lengths.tolist() == [6, 3]
    assert locations(trees)[prompt_key(prompts[1])] == (0, 4, 5, 7)  # behind the suffix of one token


def test_a_result_is_read_when_the_next_one_is_under_way():
    events = []

    def started():
        for i in range(3):
            events.append(f"start {i}")
            yield i

    for i in one_behind(started()):
        events.append(f"read {i}")
    assert events == ["start 0", "start 1", "read 0", "start 2", "read 1", "read 2"]
