"""Probes whether harmful questions and their rewrites can be told apart inside the mini.

    python -m rrs_jax.mini.separability

A linear probe (ridge regression on standardised features) on the hidden states behind every third layer, at
the prompt's last token and averaged over the question, once for the spoken and once for the written question.
Folds are made of whole pairs, so no twin of a tested question is trained on. RRS moves such states apart
(section 3.2), with adapters on all layers, which may find more than a probe at one of them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.kinds import with_home
from rrs_jax.config.prompts import PROMPT_T, evaluation_prompt
from rrs_jax.data.starter import StarterChoice, choose_rows
from rrs_jax.errors import exit_status
from rrs_jax.files import write_json
from rrs_jax.inputs.batching import batches_in_buckets, bucket_lengths, collate, restore_order
from rrs_jax.mini.measure import BATCH, load_mini
from rrs_jax.models.decoder_pass import DecoderInputs, Wanted
from rrs_jax.progress import Progress

EVERY = 3  # layers
FOLDS = 10
RIDGES = (300.0, 3_000.0, 30_000.0)


def hidden_features(model: nnx.Module, rows: list, bank: jax.Array, audio_token_id: int) -> np.ndarray:
    """Returns float32 (N, 2, layers, D): the prompt's last token, and the mean over the question's
    positions.

    The question's positions are its audio's, or all of a prompt without audio.
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def features(state, bank, batch):
        model = nnx.merge(graphdef, state)
        x = model.embed(batch.input_ids, batch.audio_index, bank)
        states = model.language_model(DecoderInputs(x, batch.lengths), None, Wanted(each_layer="all"))
        states = states.each_layer[EVERY - 1 :: EVERY]
        positions = jnp.arange(batch.input_ids.shape[1])[None]
        real = positions < batch.lengths[:, None]
        heard = batch.audio_index >= 0
        mask = jnp.where(heard.any(1, keepdims=True), heard, real).astype(jnp.float32)
        mean = jnp.einsum("LBTD,BT->BLD", states.astype(jnp.float32), mask / mask.sum(1, keepdims=True))
        last = jnp.take_along_axis(states, (batch.lengths - 1)[None, :, None, None], axis=2)[:, :, 0]
        return jnp.stack([last.astype(jnp.float32).swapaxes(0, 1), mean], axis=1)

    lengths = [len(row[0]) for row in rows]
    batches = batches_in_buckets(lengths, BATCH, bucket_lengths(lengths, 3))
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
    distinct = sorted(set(pairs))
    fold_of = dict(zip(distinct, np.random.default_rng(seed).permutation(len(distinct)) % FOLDS, strict=True))
    folds = np.array([fold_of[pair] for pair in pairs])
    signs = np.where(harmful, 1.0, -1.0)
    right = np.zeros(len(RIDGES))
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        mean, scale = features[train].mean(0), features[train].std(0) + 1e-4
        known, new = ((features[chosen].astype(np.float64) - mean) / scale for chosen in (train, test))
        gram = known @ known.T
        for place, ridge in enumerate(RIDGES):
            weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), signs[train])
            right[place] += np.sum((new @ known.T @ weights) * signs[test] > 0)
    return float(right.max() / len(features))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m rrs_jax.mini.separability", description="How well probes tell twins apart."
    )
    add = parser.add_argument
    add("--pairs_per_category", type=int, default=10, help="training pairs of each of the 14 categories")
    add("--probe_dtype", default="float32", help="number type of the weights: float32 or bfloat16")
    add("--probe_out", metavar="FILE", help="JSON file for the shares")
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        run(options)
    return status.code


def run(options: argparse.Namespace) -> None:
    """Prints the shares, and writes them where that is asked for."""
    rows = choose_rows(StarterChoice("train", options.pairs_per_category))
    model, processor, bank = load_mini([row["question"] for row in rows], options.probe_dtype)
    spoken = [(processor.encode(PROMPT_T, bank.clips([i])[1]), *bank.clips([i])) for i in range(len(rows))]
    written = [
        (processor.encode(evaluation_prompt("text_only", row["question"], "prompted")), [], [])
        for row in rows
    ]
    harmful, pairs = np.array([row["label"] == "harmful" for row in rows]), [row["pair_id"] for row in rows]
    shares = {"pairs": len(set(pairs))}
    for name, prompts in (("spoken", spoken), ("written", written)):
        features = hidden_features(model, prompts, bank.array, processor.audio_token_id)
        for place, where in enumerate(("last_token", "question_mean")):
            shares[f"{name}_{where}"] = {
                (layer + 1) * EVERY: round(100 * probe_accuracy(features[:, place, layer], harmful, pairs), 1)
                for layer in range(features.shape[2])
            }
    print(json.dumps(shares, indent=2))
    if options.probe_out:
        write_json(Path(options.probe_out), shares)


if __name__ == "__main__":
    sys.exit(main())
