"""Representations of prompts: f_θ(d, t), equations 6 to 8 of the paper (section 4.1)."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rrs_jax.distributed.mesh import batch_sharding, fetch, mesh_of, put, replicated, rows_multiple, traced_on
from rrs_jax.errors import UserError
from rrs_jax.inputs.batching import (
    EncodedPrompt,
    Selection,
    batches_in_buckets,
    collate,
    pad_rows,
    restore_order,
)
from rrs_jax.models.ahead_of_time import Programs
from rrs_jax.models.batch import Batch
from rrs_jax.models.stack import compiler_options

LOGIT_ROWS = 32  # rows whose logits (V wide, float32) exist at the same time


def extract_reps(
    model: nnx.Module,
    batches: Batch | Sequence[Batch],
    audio_bank: jax.Array | None = None,
    *,
    mesh: Mesh | None = None,
    layers: tuple[int, ...] | None = None,
    last: int = 1,
) -> jax.Array:
    """Final-norm hidden states at each prompt's last token: (B, D) float32, of several batches one below the
    other.

    Compiled once for each model and shape; rows are cut over `data` and `fsdp` of `mesh` (default: the mesh
    on which the model lies). `audio_bank` (rows, D) may be left out where no prompt has audio. With `layers`
    it is (B, len(layers), D), the states behind them, before the final norm; without, and with `last` above
    1, it is (B, last, D), the states at the last so many tokens, of which a shorter prompt repeats the first.
    """
    if not isinstance(batches, Batch):
        return jnp.concatenate(
            [extract_reps(model, batch, audio_bank, mesh=mesh, layers=layers, last=last) for batch in batches]
        )
    program, arguments = _call(model, batches, audio_bank, mesh, layers, last)
    rows, output = batches.lengths.shape[0], program(*arguments)
    return output if output.shape[0] == rows else output[:rows]


def _call(
    model: nnx.Module,
    batch: Batch,
    audio_bank: jax.Array | None,
    mesh: Mesh | None,
    layers: tuple[int, ...] | None = None,
    last: int = 1,
) -> tuple[Programs, tuple]:
    """The program that computes a batch's representations, and its arguments on the devices."""
    mesh = mesh or mesh_of(model)
    if audio_bank is None:
        audio_bank = jnp.zeros((1, model.config.text.hidden_size), jnp.float32)
    graphdef, state = nnx.split(model)
    batch = put(pad_rows(batch, rows_multiple(mesh)), batch_sharding(mesh))
    return _representations(graphdef, mesh, layers, last), (state, batch, put(audio_bank, replicated(mesh)))


def extract_all(
    model: nnx.Module,
    rows: Sequence[EncodedPrompt],
    audio_bank: jax.Array,
    *,
    batch_size: int,
    buckets: Sequence[int],
    attach: Callable[[Batch, Sequence[EncodedPrompt]], Batch] | None = None,
    progress=None,
    **wanted,
) -> np.ndarray:
    """Representations of many prompts, (N, D) float32 in the order given; with `layers` or `last`, which
    `wanted` may hold, as `extract_reps` gives them.

    Prompts run longest first in batches of `batch_size`, padded to one of `buckets`. `attach` adds the
    lower layers' states to a batch of these rows (`rrs_jax.frozen.prefix_states.PrefixStates.attach`).
    `progress` is a `rrs_jax.progress.Progress` over prompts, or None. Raises UserError where a state is not
    finite.
    """
    selections = batches_in_buckets([len(ids) for ids, _, _ in rows], batch_size, buckets)

    def batch_of(selection: Selection) -> Batch:
        chosen = [rows[i] for i in selection.indices]
        batch = collate(chosen, selection.length, model.config.audio_token_id)
        return batch if attach is None else attach(batch, chosen)

    firsts = {selection.length: selection for selection in selections}.values()
    calls = [_call(model, batch_of(selection), audio_bank, None, **wanted) for selection in firsts]
    if calls:
        calls[0][0].prepare([arguments for _, arguments in calls])
    results: list[jax.Array | np.ndarray] = []
    for selection in selections:
        results.append(extract_reps(model, batch_of(selection), audio_bank, **wanted))
        if len(results) > 1:  # the host reads one batch while the device computes the next
            results[-2] = np.asarray(results[-2])
        if progress is not None:
            progress.update(int(selection.weights.sum()))
    states = restore_order(selections, results)
    check_finite({"hidden states": states})
    return states


def check_finite(arrays: Mapping[str, np.ndarray], what: str = "the model") -> None:
    """Raises UserError that names each array with NaN or infinite numbers and counts its rows with some.

    what: the source of the arrays, for the message.
    """
    faults = []
    for name, array in arrays.items():
        array = np.asarray(array)
        if jnp.issubdtype(array.dtype, jnp.floating) and not (finite := np.isfinite(array)).all():
            rows = finite.reshape(len(array), -1).all(axis=1) if array.ndim > 1 else finite
            faults.append(f"{name} in {np.sum(~rows)} of {len(np.atleast_1d(rows))} rows")
    if faults:
        raise UserError(
            f"{what}: NaN or infinite numbers among the {', '.join(faults)}, so nothing is kept; set"
            " model.dtype to float32, or check the weights."
        )


@functools.lru_cache(maxsize=8)
def _representations(graphdef, mesh: Mesh, layers: tuple[int, ...] | None, last: int):
    def representations(state, batch, audio_bank):
        model = nnx.merge(graphdef, state)
        if layers is not None:
            return model.layer_states(batch, audio_bank, layers)
        if last == 1:
            return model.representations(batch, audio_bank)
        positions = jnp.maximum(batch.lengths[:, None] - last + jnp.arange(last), 0)
        return model.states_at(batch, audio_bank, positions)

    return Programs(
        jax.jit(
            traced_on(mesh, representations),
            out_shardings=replicated(mesh),
            compiler_options=compiler_options(),
        )
    )


def first_tokens(model: nnx.Module, states: np.ndarray) -> np.ndarray:
    """Likeliest next token of representations (N, D), int (N,)."""
    graphdef, state = nnx.split(model)
    slices = [states[start : start + LOGIT_ROWS] for start in range(0, len(states), LOGIT_ROWS)]
    tokens = [fetch(_likeliest(graphdef, state, pad_rows(part, LOGIT_ROWS)))[: len(part)] for part in slices]
    return np.concatenate(tokens) if tokens else np.zeros(0, np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(graphdef, state, hidden: jax.Array) -> jax.Array:
    return jnp.argmax(nnx.merge(graphdef, state).logits(hidden), axis=-1)
