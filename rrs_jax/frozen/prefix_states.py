"""The layers below the first adapter, computed once for all prompts of a run.

They are frozen, and prompts have common prefixes: the system prompt, and the clip. So the shared prefix of
all goes through them once, then each tree (`rrs_jax.frozen.prefix_trees`) behind it; and extraction, training
and the answers of several models start above them.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rrs_jax.distributed.mesh import batch_sharding, mesh_of, put, replicated, rows_multiple, traced_on
from rrs_jax.frozen.overlap import one_behind
from rrs_jax.frozen.prefix_trees import Tree, collate_trees, locations, prompt_key, shared_prefix_length
from rrs_jax.inputs.batching import EncodedPrompt, Selection, batches_in_buckets, pad_rows
from rrs_jax.models.ahead_of_time import Programs
from rrs_jax.models.batch import Batch
from rrs_jax.models.cache import KeysValues
from rrs_jax.models.flops import state_size
from rrs_jax.models.stack import compiler_options
from rrs_jax.progress import Progress

# Hidden states (..., D), and keys and values (..., L, K, E) or None.
States = tuple[np.ndarray, KeysValues | None]


def states_bytes(model: nnx.Module, trees: Sequence[Tree], kept_layers: int = 0) -> int:
    """Bytes of host memory that the `PrefixStates` of these trees take, with `kept_layers` layers' keys and
    values."""
    tokens = sum(tree.length for tree in trees)
    return tokens * state_size(model.config.text, kept_layers) * model.dtype.itemsize


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
        self._locations = locations(trees)
        self._of_tree: list[States] = [()] * len(trees)  # of a tree's tokens, (its length, ...)
        self._compute(
            _LowerLayers(model, layers, audio_bank, mesh or mesh_of(model)),
            trees,
            shared_prefix_length(model, trees),
            lambda lengths: batches_in_buckets(lengths, batch_size, buckets(lengths)),
        )

    def __contains__(self, row: EncodedPrompt) -> bool:
        return prompt_key(row) in self._locations

    def states(self, rows: Sequence[EncodedPrompt], length: int) -> States:
        """States (B, length, D), and keys and values (B, length, L, K, E); zero past a row's end.

        Raises KeyError for a prompt that is not here.
        """
        found = jax.tree.map(
            lambda leaf: np.zeros((len(rows), length, *leaf.shape[1:]), leaf.dtype), self._of_tree[0]
        )
        for row, prompt in enumerate(rows):
            at = self._locations[prompt_key(prompt)]
            of_tree = jax.tree.leaves(self._of_tree[at.tree])
            for target, tokens in zip(jax.tree.leaves(found), of_tree, strict=True):
                target[row, : at.prefix] = tokens[: at.prefix]
                target[row, at.prefix : at.prefix + at.end - at.start] = tokens[at.start : at.end]
        return found

    def attach(self, batch: Batch, rows: Sequence[EncodedPrompt]) -> Batch:
        """The batch of these rows with their states, from which it then starts."""
        states, keys_values = self.states(rows, batch.input_ids.shape[1])
        return batch.replace(lower_states=states, lower_keys_values=keys_values, lower_layers=self.layers)

    def _compute(
        self,
        lower: "_LowerLayers",
        trees: Sequence[Tree],
        skip: int,
        cut: Callable[[Sequence[int]], list[Selection]],
    ) -> None:
        """Computes the shared prefix of `skip` tokens and, behind it, all trees in the batches that `cut`
        makes of their lengths."""
        seen, kept = lower.shared_prefix(trees[0], skip, self.keys_values) if skip else (None, None)
        lengths = [tree.length - skip for tree in trees]
        selections = cut(lengths) if trees else []
        program = lower.program(self.keys_values)

        def arguments(selection: Selection) -> tuple:
            chosen = [trees[i] for i in selection.indices]
            return lower.arguments(chosen, selection.length, skip, seen)

        one_of_each_length = {selection.length: selection for selection in selections}
        program.prepare([arguments(selection) for selection in one_of_each_length.values()])
        prompts = sum(len(tree.rows) for tree in trees)
        calls = ((selection, program(*arguments(selection))) for selection in selections)
        what = f"computing the {self.layers} layers without adapters, once for all"
        with Progress(prompts, what, "prompts") as progress:
            for selection, output in one_behind(calls):
                output = jax.tree.map(np.asarray, output)
                for row in np.flatnonzero(selection.weights):
                    tree = selection.indices[row]
                    own = jax.tree.map(lambda leaf, at=(row, slice(lengths[tree])): leaf[at], output)
                    parts = (kept, own) if skip else (own,)
                    self._of_tree[tree] = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
                    progress.update(len(trees[tree].rows))


class _LowerLayers:
    """A model's layers below `layers`, run over trees on a mesh."""

    def __init__(self, model: nnx.Module, layers: int, audio_bank: jax.Array, mesh: Mesh):
        self.graphdef, self.parameters = nnx.split(model)
        self.layers, self.mesh, self.audio_token_id = layers, mesh, model.config.audio_token_id
        self.audio_bank = put(audio_bank, replicated(mesh))

    def program(self, keys_values: bool) -> Programs:
        """The compiled pass, with keys and values or without."""
        return _lower_states(self.graphdef, self.mesh, self.layers, keys_values)

    def arguments(
        self, trees: Sequence[Tree], length: int, skip: int = 0, prefix: KeysValues | None = None
    ) -> tuple:
        """The program's arguments for a batch of trees without their first `skip` tokens, whose keys and
        values `prefix` (L, P, K, E) are."""
        batch = pad_rows(collate_trees(trees, length, self.audio_token_id, skip), rows_multiple(self.mesh))
        return self.parameters, put(batch, batch_sharding(self.mesh)), self.audio_bank, prefix

    def shared_prefix(self, tree: Tree, length: int, keys_values: bool) -> tuple[KeysValues, States]:
        """The shared prefix as the trees see it, keys and values (L, P, K, E) on the device, and as it is
        kept, (P, ...) on the host."""
        ids, _, _ = tree.rows[0]
        alone = Tree([(ids[:length], [], [])], length)
        states, by_token = self.program(True)(*self.arguments([alone], length))
        seen = jax.tree.map(lambda leaf: leaf[0].swapaxes(0, 1), by_token)
        kept = jax.tree.map(lambda leaf: np.asarray(leaf[0]), (states, by_token if keys_values else None))
        return seen, kept


@functools.lru_cache(maxsize=8)
def _lower_states(graphdef, mesh: Mesh, layers: int, keys_values: bool) -> Programs:
    def lower_states(parameters, trees, audio_bank, prefix: KeysValues | None):
        model = nnx.merge(graphdef, parameters)
        return model.lower_states(trees, audio_bank, layers, prefix=prefix, keys_values=keys_values)

    return Programs(
        jax.jit(
            traced_on(mesh, lower_states), out_shardings=replicated(mesh), compiler_options=compiler_options()
        )
    )
