"""The layers below the first adapter, computed once for all prompts of a run.

They are frozen, all prompts begin alike, with the system prompt, and those of one clip go on alike, with the
clip. So the opening of all goes through them once, then each clip's common beginning, and each prompt's own
end behind it; and extraction, training and the answers of several models start above them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rrs_jax.distributed.mesh import batch_sharding, mesh_of, put, replicated, rows_multiple, traced_on
from rrs_jax.inputs.batching import EncodedPrompt, Selection, batches_in_buckets, collate, pad_rows
from rrs_jax.models.ahead_of_time import Programs
from rrs_jax.models.batch import Batch, Trees
from rrs_jax.models.cache import Store
from rrs_jax.models.flops import state_size
from rrs_jax.models.stack import compiler_options
from rrs_jax.progress import Progress

# Tokens behind a beginning: attention grows with the square of a tree's length, a beginning has about 100.
MOST_OF_ENDS = 512


class Tree(NamedTuple):
    """Prompts of the same clips whose first `common` tokens are the same."""

    rows: list[EncodedPrompt]
    common: int

    @property
    def length(self) -> int:
        """Of the sequence: the beginning and all ends."""
        return self.common + sum(len(ids) - self.common for ids, _, _ in self.rows)

    @property
    def longest(self) -> int:
        return max(len(ids) for ids, _, _ in self.rows)


def make_trees(model: nnx.Module, rows: Sequence[EncodedPrompt], most: int = MOST_OF_ENDS) -> list[Tree]:
    """Each different prompt once, those of the same clips together, one without a clip by itself; where their
    ends have more than `most` tokens, in several trees that repeat the beginning."""
    kinds = model.language_model.angle_kinds(np.array([len(ids) for ids, _, _ in rows]))
    groups: dict[tuple, dict[tuple, EncodedPrompt]] = {}
    for row, kind in zip(rows, kinds.tolist(), strict=True):
        _, offsets, counts = row
        group = (tuple(offsets), tuple(counts), kind) if len(offsets) else _key(row)
        groups.setdefault(group, {}).setdefault(_key(row), row)
    trees = []
    for members in groups.values():
        common = _common_length([ids for ids, _, _ in members.values()])
        taken: list[EncodedPrompt] = []
        for row in members.values():
            if taken and Tree([*taken, row], common).length > common + most:
                trees.append(Tree(taken, common))
                taken = []
            taken.append(row)
        trees.append(Tree(taken, common))
    return trees


def states_bytes(model: nnx.Module, trees: Sequence[Tree], kept_layers: int = 0) -> int:
    """Bytes of host memory that the `PrefixStates` of these trees take, with `kept_layers` layers' keys and
    values."""
    return (
        sum(tree.length for tree in trees) * state_size(model.config.text, kept_layers) * model.dtype.itemsize
    )


def opening_length(model: nnx.Module, trees: Sequence[Tree]) -> int:
    """How many first tokens all trees have in common, none of them a clip's; 0 for a tree alone, or where not
    all prompts, and an opening by itself, are rotated alike."""
    lengths = [tree.longest for tree in trees]
    if len(trees) < 2 or len({*model.language_model.angle_kinds(np.array([1, *lengths])).tolist()}) > 1:
        return 0
    ids = trees[0].rows[0][0]
    shared = _common_length([tree.rows[0][0] for tree in trees])
    shared = min(shared, *(min(tree.common, tree.length - 1) for tree in trees))
    audio = np.flatnonzero(np.isin(ids[:shared], model.config.audio_token_id))
    return int(audio[0]) if len(audio) else shared


class PrefixStates:
    """Hidden states behind the layers below the first adapter, of many prompts, on the host in the model's
    dtype; with `keys_values` these layers' keys and values too, which answers need to begin here.

    Args:
      model: the frozen one, without adapters.
      layers: how many layers are computed, the first adapter's number.
      audio_bank: (rows, D), on which the prompts' clips lie.
      batch_size: trees at once.
      buckets: lengths of trees to the lengths to which they are padded.
    """

    def __init__(
        self,
        model: nnx.Module,
        layers: int,
        trees: Sequence[Tree],
        audio_bank: jax.Array,
        *,
        batch_size: int,
        buckets: Callable[[Sequence[int]], Sequence[int]],
        mesh: Mesh | None = None,
        keys_values: bool = False,
    ):
        self.layers, self.keys_values = layers, keys_values
        self._kept: list[tuple[np.ndarray, Store | None]] = [()] * len(
            trees
        )  # of each tree, the leaves (its length, ...)
        self._places: dict[
            tuple, tuple[int, int, int, int]
        ] = {}  # tree, length of the beginning, start and end of its own
        for number, tree in enumerate(trees):
            start = tree.common
            for row in tree.rows:
                end = start + len(row[0]) - tree.common
                self._places[_key(row)] = number, tree.common, start, end
                start = end
        self._compute(model, trees, audio_bank, batch_size, buckets, mesh or mesh_of(model))

    def __contains__(self, row: EncodedPrompt) -> bool:
        return _key(row) in self._places

    def states(self, rows: Sequence[EncodedPrompt], length: int) -> tuple[np.ndarray, Store | None]:
        """(B, length, D), and keys and values (B, length, n, K, H); zero past a row's end. Raises KeyError
        for a prompt that is not here."""
        places = [self._places[_key(row)] for row in rows]
        found = jax.tree.map(
            lambda leaf: np.zeros((len(rows), length, *leaf.shape[1:]), leaf.dtype), self._kept[0]
        )
        for place, (number, common, start, end) in enumerate(places):
            for target, tree in zip(jax.tree.leaves(found), jax.tree.leaves(self._kept[number]), strict=True):
                target[place, :common] = tree[:common]
                target[place, common : common + end - start] = tree[start:end]
        return found

    def attach(self, batch: Batch, rows: Sequence[EncodedPrompt]) -> Batch:
        """The batch of these rows, to start from here."""
        states, store = self.states(rows, batch.input_ids.shape[1])
        return batch.replace(lower_states=states, lower_store=store, lower_layers=self.layers)

    def _compute(
        self, model: nnx.Module, trees: Sequence[Tree], audio_bank, batch_size: int, buckets, mesh: Mesh
    ) -> None:
        audio_ids, rows, skip = model.config.audio_token_id, rows_multiple(mesh), opening_length(model, trees)
        lengths = [tree.length - skip for tree in trees]
        selections = batches_in_buckets(lengths, batch_size, buckets(lengths)) if trees else []
        graphdef, state = nnx.split(model)
        bank = put(audio_bank, replicated(mesh))
        before_all, opening = (), None  # what is kept of the opening, and what the trees see of it
        if skip:
            tree = Tree([(trees[0].rows[0][0][:skip], [], [])], skip)
            batch = put(pad_rows(collate_trees([tree], skip, audio_ids), rows), batch_sharding(mesh))
            states, store = _lower_states(graphdef, mesh, self.layers, True)(state, batch, bank, None)
            opening = jax.tree.map(lambda leaf: leaf[0].swapaxes(0, 1), store)
            before_all = jax.tree.map(
                lambda leaf: np.asarray(leaf[0]), (states, store if self.keys_values else None)
            )
        program = _lower_states(graphdef, mesh, self.layers, self.keys_values)

        def arguments(selection: Selection) -> tuple:
            batch = collate_trees([trees[i] for i in selection.indices], selection.length, audio_ids, skip)
            return state, put(pad_rows(batch, rows), batch_sharding(mesh)), bank, opening

        def read(selection: Selection, output: tuple[jax.Array, Store | None]) -> None:
            output = jax.tree.map(np.asarray, output)
            for place in np.flatnonzero(selection.weights):
                number = selection.indices[place]
                own = jax.tree.map(lambda leaf, cut=(place, slice(lengths[number])): leaf[cut], output)
                parts = (before_all, own) if skip else (own,)
                self._kept[number] = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
            progress.update(sum(len(trees[i].rows) for i in selection.indices[selection.weights > 0]))

        program.prepare(
            [arguments(one) for one in {selection.length: selection for selection in selections}.values()]
        )
        before = None
        with Progress(
            sum(len(tree.rows) for tree in trees), f"layers below {self.layers}", "prompts"
        ) as progress:
            for selection in selections:
                output = program(*arguments(selection))
                if before is not None:
                    read(*before)  # while the device computes the next one
                before = selection, output
            if before is not None:
                read(*before)


def collate_trees(
    trees: Sequence[Tree], length: int, audio_token_id: int | Sequence[int], skip: int = 0
) -> Trees:
    """Trees without their first `skip` tokens to NumPy arrays (B, length). Raises ValueError as `collate`
    does, and for a tree that is longer."""
    shape = len(trees), length
    found = Trees(
        input_ids=np.zeros(shape, np.int32),
        audio_index=np.full(shape, -1, np.int32),
        positions=np.zeros(shape, np.int32),
        branches=np.zeros(shape, np.int32),
        lengths=np.array([tree.longest for tree in trees], np.int32),
    )
    for place, tree in enumerate(trees):
        if tree.length - skip > length:
            raise ValueError(f"tree {place} has {tree.length - skip} tokens, the batch is {length} long")
        batch = collate(tree.rows, tree.longest, audio_token_id)
        parts = [(0, skip, tree.common, 0)]
        parts += [(row, tree.common, end, row + 1) for row, end in enumerate(batch.lengths)]
        start = 0
        for row, first, end, branch in parts:
            here = place, slice(start, start + end - first)
            found.input_ids[here], found.audio_index[here] = (
                batch.input_ids[row, first:end],
                batch.audio_index[row, first:end],
            )
            found.positions[here], found.branches[here] = np.arange(first, end), branch
            start += end - first
    return found


@functools.lru_cache(maxsize=8)
def _lower_states(graphdef, mesh: Mesh, layers: int, keys_values: bool) -> Programs:
    def lower_states(state, trees, audio_bank, opening: Store | None):
        model = nnx.merge(graphdef, state)
        return model.lower_states(trees, audio_bank, layers, opening=opening, keys_values=keys_values)

    return Programs(
        jax.jit(
            traced_on(mesh, lower_states), out_shardings=replicated(mesh), compiler_options=compiler_options()
        )
    )


def _key(row: EncodedPrompt) -> tuple:
    ids, offsets, _ = row
    return tuple(ids), tuple(offsets)


def _common_length(sequences: Sequence[list[int]]) -> int:
    """Of the longest beginning that all have; what the first and the last in order share, all between them
    share."""
    first, last = min(sequences), max(sequences)
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return len(first)
