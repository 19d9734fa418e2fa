"""Representations of prompts, and the safety vector made from them (section 4.1 of the paper)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rrs_jax.distributed.mesh import batch_sharding, fetch, mesh_of, put, replicated, rows_multiple
from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path
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
from rrs_jax.weights.safetensors_io import read_header, save_file

LOGIT_ROWS = 32  # rows whose logits (V wide, float32) exist at the same time


@dataclasses.dataclass(frozen=True)
class Representations:
    """What the frozen model makes of the training questions, each float32 (N, D).

    Attributes:
      harmful: V(d^h), harmful questions under the prompt t (equation 6).
      harmful_refusal: the same questions under the refusal prompt (equation 8).
      benign: V(d^b), benign questions under t (equation 7).
    """

    harmful: np.ndarray
    harmful_refusal: np.ndarray
    benign: np.ndarray


@dataclasses.dataclass(frozen=True)
class SafetyVector:
    """Equations 9 and 10.

    Attributes:
      delta_mean: float32 (D,), the mean change from benign to refused.
      contribution: float32 (D,), what each feature adds to the refusal token's logit (equation 5).
      vector: float32 (D,), `delta_mean` where selected, else 0.
      selected: bool (D,).
      positive_share: share of features with a positive contribution, 0 to 1; the paper's is about 0.51.
      delta_logit: the change of the refusal token's logit by the whole of `delta_mean`.
      delta_logit_selected: the same by `vector`.
    """

    delta_mean: np.ndarray
    contribution: np.ndarray
    vector: np.ndarray
    selected: np.ndarray
    positive_share: float
    delta_logit: float
    delta_logit_selected: float


def extract_reps(
    model: nnx.Module,
    batches: Batch | Sequence[Batch],
    audio_bank: jax.Array | None = None,
    *,
    mesh: Mesh | None = None,
    layers: tuple[int, ...] | None = None,
) -> jax.Array:
    """Final-norm hidden states at each prompt's last token: (B, D) float32, of several batches one below the
    other.

    Compiled once for each model and shape; rows are cut over `data` and `fsdp` of `mesh` (default: the mesh
    on which the model lies). `audio_bank` (rows, D) may be left out where no prompt has audio. With `layers`
    it is (B, len(layers), D), the states behind them, before the final norm.
    """
    if not isinstance(batches, Batch):
        return jnp.concatenate(
            [extract_reps(model, batch, audio_bank, mesh=mesh, layers=layers) for batch in batches]
        )
    program, arguments = _call(model, batches, audio_bank, mesh, layers)
    rows, output = batches.lengths.shape[0], program(*arguments)
    return output if output.shape[0] == rows else output[:rows]


def _call(
    model: nnx.Module, batch: Batch, audio_bank: jax.Array | None, mesh: Mesh | None, layers
) -> tuple[Programs, tuple]:
    """What computes the representations of a batch, and its arguments on the devices."""
    mesh = mesh or mesh_of(model)
    if audio_bank is None:
        audio_bank = jnp.zeros((1, model.config.text.hidden_size), jnp.float32)
    graphdef, state = nnx.split(model)
    batch = put(pad_rows(batch, rows_multiple(mesh)), batch_sharding(mesh))
    return _representations(graphdef, mesh, layers), (state, batch, put(audio_bank, replicated(mesh)))


def extract_all(
    model: nnx.Module,
    rows: Sequence[EncodedPrompt],
    audio_bank: jax.Array,
    *,
    batch_size: int,
    buckets: Sequence[int],
    mesh: Mesh | None = None,
    layers: tuple[int, ...] | None = None,
    attach: Callable[[Batch, Sequence[EncodedPrompt]], Batch] | None = None,
    progress=None,
) -> np.ndarray:
    """Representations of many prompts, (N, D) float32 in the order given; with `layers` as `extract_reps`
    gives them.

    Prompts run longest first in batches of `batch_size`, padded to one of `buckets`. `attach` adds the
    lower layers' states to a batch of these rows (`rrs_jax.frozen.prefix_states.PrefixStates.attach`).
    `progress` is a
    `rrs_jax.progress.Progress` over prompts, or None.
    """
    selections = batches_in_buckets([len(ids) for ids, _, _ in rows], batch_size, buckets)

    def batch_of(selection: Selection) -> Batch:
        chosen = [rows[i] for i in selection.indices]
        batch = collate(chosen, selection.length, model.config.audio_token_id)
        return batch if attach is None else attach(batch, chosen)

    firsts = {selection.length: selection for selection in selections}.values()
    calls = [_call(model, batch_of(selection), audio_bank, mesh, layers) for selection in firsts]
    if calls:
        calls[0][0].prepare([arguments for _, arguments in calls])
    results: list[jax.Array | np.ndarray] = []
    for selection in selections:
        results.append(extract_reps(model, batch_of(selection), audio_bank, mesh=mesh, layers=layers))
        if len(results) > 1:  # the host reads one batch while the device computes the next
            results[-2] = np.asarray(results[-2])
        if progress is not None:
            progress.update(int(selection.weights.sum()))
    return restore_order(selections, results)


@functools.lru_cache(maxsize=8)
def _representations(graphdef, mesh: Mesh, layers: tuple[int, ...] | None):
    def representations(state, batch, audio_bank):
        model = nnx.merge(graphdef, state)
        if layers is None:
            return model.representations(batch, audio_bank)
        return model.layer_states(batch, audio_bank, layers)

    return Programs(
        jax.jit(representations, out_shardings=replicated(mesh), compiler_options=compiler_options())
    )


def safety_vector(
    harmful_refusal,
    benign,
    head_row,
    top_m: float | str = 51,
    reshape: Callable[[np.ndarray], np.ndarray] | None = None,
) -> SafetyVector:
    """The safety vector of representations (N, D) and the head's row (D,) of the refusal token.

    `top_m` keeps that many percent of the features, those that contribute most to the refusal token's logit;
    "positive" keeps all that raise it. The two means need not be over equally many samples. `reshape` changes
    the mean change (D,) before features are selected.
    Raises UserError for a `top_m` outside 0 to 100.
    """
    count = _selected_count(top_m, np.shape(head_row)[0])
    delta = np.asarray(_mean_change(jnp.asarray(harmful_refusal), jnp.asarray(benign)))
    if reshape is not None:
        delta = reshape(delta)
    contribution = np.asarray(head_row, np.float32) * delta
    positive = contribution > 0
    selected = positive
    if count is not None:
        selected = np.zeros(delta.shape, bool)
        selected[np.argsort(-contribution, kind="stable")[:count]] = True
    return SafetyVector(
        delta_mean=delta,
        contribution=contribution,
        vector=np.where(selected, delta, np.float32(0)),
        selected=selected,
        positive_share=float(positive.mean()),
        delta_logit=float(contribution.sum(dtype=np.float64)),
        delta_logit_selected=float(contribution[selected].sum(dtype=np.float64)),
    )


def _selected_count(top_m: float | str, features: int) -> int | None:
    if top_m == "positive":
        return None
    if isinstance(top_m, bool) or not isinstance(top_m, int | float) or not 0 < top_m <= 100:
        raise UserError(
            f"rrs.top_m: {top_m!r} is no share of the features; give percent above 0 up to 100, or"
            ' "positive".'
        )
    return round(top_m / 100 * features)


@jax.jit
def _mean_change(harmful_refusal: jax.Array, benign: jax.Array) -> jax.Array:
    """Means are taken of differences to a rough mean: sums of N large float32 numbers would lose digits that
    the small difference of the two means needs."""
    refusal, benign = harmful_refusal.astype(jnp.float32), benign.astype(jnp.float32)
    rough = jnp.mean(benign, axis=0)
    return jnp.mean(refusal - rough, axis=0) - jnp.mean(benign - rough, axis=0)


def premise(
    model: nnx.Module, representations: Representations, token_ids: int | Sequence[int]
) -> dict[str, float]:
    """Share of samples, 0 to 1, whose likeliest first token is a refusal token, by kind of representation.

    The method takes for granted that it comes first under the refusal prompt and not for benign questions.
    """
    graphdef, state = nnx.split(model)
    shares = {}
    for field in dataclasses.fields(representations):
        rows = getattr(representations, field.name)
        slices = [rows[start : start + LOGIT_ROWS] for start in range(0, len(rows), LOGIT_ROWS)]
        tokens = [
            fetch(_likeliest(graphdef, state, pad_rows(part, LOGIT_ROWS)))[: len(part)] for part in slices
        ]
        shares[field.name] = float(np.isin(np.concatenate(tokens), token_ids).mean())
    return shares


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(graphdef, state, hidden: jax.Array) -> jax.Array:
    return jnp.argmax(nnx.merge(graphdef, state).logits(hidden), axis=-1)


def save_representations(
    path: str | Path,
    representations: Representations,
    vector: SafetyVector,
    metadata: dict[str, object],
    extras: dict[str, np.ndarray] | None = None,
) -> None:
    """Writes `RUN/representations.safetensors`; metadata (model, prompts, top_m, refusal_token_id) become
    strings, `extras` are a strategy's own arrays."""
    tensors = {
        field.name: getattr(representations, field.name) for field in dataclasses.fields(representations)
    }
    tensors |= {
        "delta_mean": vector.delta_mean,
        "contribution": vector.contribution,
        "safety_vector": vector.vector,
    }
    tensors = {name: np.asarray(array, np.float32) for name, array in tensors.items()} | (extras or {})
    with atomic_path(path) as temporary:
        save_file(temporary, tensors, {name: str(value) for name, value in metadata.items()})


def load_representations(path: str | Path) -> tuple[Representations, dict[str, np.ndarray], dict[str, str]]:
    """The file's representations, its other arrays (delta_mean, contribution, safety_vector, extras) and its
    metadata.

    Raises UserError where the file is missing or damaged.
    """
    entries, metadata = read_header(Path(path))
    arrays = {name: np.array(entry.array()) for name, entry in entries.items()}
    names = [field.name for field in dataclasses.fields(Representations)]
    missing = [name for name in (*names, "delta_mean", "contribution", "safety_vector") if name not in arrays]
    if missing:
        raise UserError(f"{path}: holds no {', '.join(missing)}; delete it and run the stage extract again.")
    return Representations(**{name: arrays.pop(name) for name in names}), arrays, metadata
