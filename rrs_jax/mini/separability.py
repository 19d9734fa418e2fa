"""Probes whether harmful questions and their rewrites can be told apart inside a small model.

    python -m rrs_jax.mini.separability --model=small --out=shares.json

A linear probe (ridge regression on standardised features) on the hidden states behind every third layer and
the last one, at the prompt's last token and averaged over the question, once for the spoken and once for the
written question. Folds are made of whole pairs, so no twin of a tested question is trained on. `best_layer`
is the highest of these shares, and flatters; for `chosen_inside` layer and ridge are chosen for each fold by
the other folds alone, and `ci95` is its 95 % interval over pairs. RRS moves such states apart (section 3.2),
with adapters on all layers, which may find more than a probe at one of them.
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.kinds import integer, names
from rrs_jax.config.prompts import PROMPT_T, evaluation_prompt
from rrs_jax.data.starter import SPLITS, StarterChoice, choose_rows
from rrs_jax.evaluate.rates import rate_over_queries
from rrs_jax.inputs.batching import batches_in_buckets, bucket_lengths, collate, restore_order
from rrs_jax.mini.heard_model import BATCH, command_parser, load_heard, run_command
from rrs_jax.models.decoder_pass import DecoderInputs, Wanted
from rrs_jax.progress import Progress

EVERY = 3  # layers
FOLDS = 10
INNER_FOLDS = 5  # among which layer and ridge are chosen
RIDGES = (300.0, 3_000.0, 30_000.0)


def probed_layers(num_layers: int) -> list[int]:
    """Returns the numbers, from 1, of the layers behind which states are probed."""
    return sorted({*range(EVERY, num_layers + 1, EVERY), num_layers})


def hidden_features(
    model: nnx.Module, rows: list, bank: jax.Array, audio_token_id: int, batch_size: int = BATCH
) -> np.ndarray:
    """Returns float32 (N, 2, layers, D): the prompt's last token, and the mean over the question's
    positions.

    The question's positions are its audio's, or all of a prompt without audio.
    """
    graphdef, state = nnx.split(model)
    places = np.array(probed_layers(model.config.text.num_hidden_layers)) - 1

    @jax.jit
    def features(state, bank, batch):
        model = nnx.merge(graphdef, state)
        x = model.embed(batch.input_ids, batch.audio_index, bank)
        states = model.language_model(DecoderInputs(x, batch.lengths), None, Wanted(each_layer="all"))
        states = states.each_layer[places]
        positions = jnp.arange(batch.input_ids.shape[1])[None]
        real = positions < batch.lengths[:, None]
        heard = batch.audio_index >= 0
        mask = jnp.where(heard.any(1, keepdims=True), heard, real).astype(jnp.float32)
        mean = jnp.einsum("LBTD,BT->BLD", states.astype(jnp.float32), mask / mask.sum(1, keepdims=True))
        last = jnp.take_along_axis(states, (batch.lengths - 1)[None, :, None, None], axis=2)[:, :, 0]
        return jnp.stack([last.astype(jnp.float32).swapaxes(0, 1), mean], axis=1)

    lengths = [len(row[0]) for row in rows]
    batches = batches_in_buckets(lengths, batch_size, bucket_lengths(lengths, 3))
    results = []
    with Progress(len(rows), "hidden states", "prompts") as progress:
        for selection in batches:
            batch = collate([rows[i] for i in selection.indices], selection.length, audio_token_id)
            results.append(np.asarray(features(state, bank, batch)))
            progress.update(int(selection.weights.sum()))
    return restore_order(batches, results)


def probe_accuracy(features: np.ndarray, harmful: np.ndarray, pairs: list[str], seed: int = 0) -> float:
    """Returns the share of (N, D) told right by a ridge classifier, cross-validated over pairs.

    It is that of the best of `RIDGES`.
    """
    return float(_right(features, harmful, pair_folds(pairs, FOLDS, seed)).mean(1).max())


def chosen_inside(features: np.ndarray, harmful: np.ndarray, pairs: list[str], seed: int = 0) -> np.ndarray:
    """Returns which of (N, layers, D) are told right, bool (N,), by a probe chosen without their fold.

    For every fold, layer and ridge are those that cross-validation among the other folds finds best.
    """
    folds = pair_folds(pairs, FOLDS, seed)
    right = np.zeros(len(features), bool)
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        right[test] = told_right(features, harmful, pairs, train, test, seed)
    return right


def told_right(
    features: np.ndarray,
    harmful: np.ndarray,
    pairs: list[str],
    train: np.ndarray,
    test: np.ndarray,
    seed: int = 0,
) -> np.ndarray:
    """Returns which of the questions `test` of (N, layers, D) a probe of those of `train` tells right, bool
    (tested,); both are bool (N,).

    Layer and ridge are those that cross-validation within `train` finds best.
    """
    inner = pair_folds(np.array(pairs)[train].tolist(), INNER_FOLDS, seed)
    shares = [
        _right(features[train, layer], harmful[train], inner).mean(1) for layer in range(features.shape[1])
    ]
    layer, ridge = np.unravel_index(np.argmax(shares), (len(shares), len(RIDGES)))
    return _fitted(features[:, layer], harmful, train, test)[ridge]


def pair_folds(pairs: list[str], count: int, seed: int) -> np.ndarray:
    """Returns each question's fold, int (N,), drawn for whole pairs."""
    distinct = sorted(set(pairs))
    fold_of = dict(zip(distinct, np.random.default_rng(seed).permutation(len(distinct)) % count, strict=True))
    return np.array([fold_of[pair] for pair in pairs])


def _right(features: np.ndarray, harmful: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Returns what of (N, D) is told right by a probe of the other folds, bool (ridges, N)."""
    right = np.zeros((len(RIDGES), len(features)), bool)
    for fold in range(folds.max() + 1):
        right[:, folds == fold] = _fitted(features, harmful, folds != fold, folds == fold)
    return right


def _fitted(features: np.ndarray, harmful: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns what of the tested questions a probe of the others tells right, bool (ridges, tested)."""
    signs = np.where(harmful, 1.0, -1.0)
    mean, scale = features[train].mean(0), features[train].std(0) + 1e-4
    known, new = ((features[chosen].astype(np.float64) - mean) / scale for chosen in (train, test))
    gram, across = known @ known.T, new @ known.T
    weights = [np.linalg.solve(gram + ridge * np.eye(len(gram)), signs[train]) for ridge in RIDGES]
    return np.stack([(across @ weight) * signs[test] > 0 for weight in weights])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = command_parser("separability", "How well probes tell twins apart.")
    splits = names(f"one or more of {', '.join(SPLITS)}", *SPLITS)
    parser.add_argument(
        "--splits",
        type=splits.argument,
        default=("train",),
        help=f"of the starter set's pairs: {splits.wants}",
    )
    parser.add_argument(
        "--pairs_per_category",
        type=integer(1).argument,
        help="pairs of each of the 14 categories and each split; by default all: 20 train, 10 eval, 10 check",
    )
    return run_command(parser, figures, arguments)


def figures(options: argparse.Namespace) -> dict:
    """Returns the shares of the model that was asked for."""
    rows = [
        row
        for split in options.splits
        for row in choose_rows(StarterChoice(split, options.pairs_per_category))
    ]
    heard = load_heard(options, [row["question"] for row in rows])
    spoken = [heard.prompt(PROMPT_T, [i]) for i in range(len(rows))]
    written = [heard.prompt(evaluation_prompt("text_only", row["question"], "prompted")) for row in rows]
    harmful, pairs = np.array([row["label"] == "harmful" for row in rows]), [row["pair_id"] for row in rows]
    shares = {"pairs": len(set(pairs))}
    for name, prompts in (("spoken", spoken), ("written", written)):
        features = hidden_features(heard.model, prompts, heard.bank.array, heard.processor.audio_token_id)
        for place, where in enumerate(("last_token", "question_mean")):
            shares[f"{name}_{where}"] = probe_shares(
                features[:, place], harmful, pairs, probed_layers(heard.model.config.text.num_hidden_layers)
            )
    return shares


def probe_shares(
    features: np.ndarray, harmful: np.ndarray, pairs: list[str], layers: Sequence[int]
) -> dict[str, object]:
    """Returns the percent told right of (N, layers, D): by each layer, the best, and one chosen inside."""
    by_layer = {
        layer: round(100 * probe_accuracy(features[:, place], harmful, pairs), 1)
        for place, layer in enumerate(layers)
    }
    best = max(by_layer, key=by_layer.get)
    return {
        "by_layer": by_layer,
        "best_layer": {"layer": best, "right": by_layer[best]},
        "chosen_inside": share_over_pairs(counts_by_pair(chosen_inside(features, harmful, pairs), pairs)),
    }


def counts_by_pair(right: np.ndarray, pairs: list[str]) -> dict[str, tuple[int, int]]:
    """Returns each pair's questions that are told right (bool (N,)), and how many it has."""
    named = np.array(pairs)
    return {
        pair: (int(right[named == pair].sum()), int(np.sum(named == pair))) for pair in sorted(set(pairs))
    }


def share_over_pairs(counts: dict[str, tuple[int, int]]) -> dict[str, object]:
    """Returns `right`, the percent of questions told right, and `ci95` over pairs, of `counts_by_pair`."""
    rate = rate_over_queries(*zip(*counts.values(), strict=True))
    return {"right": round(rate.rate, 1), "ci95": [round(bound, 1) for bound in rate.ci95]}


if __name__ == "__main__":
    sys.exit(main())
