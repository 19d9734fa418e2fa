"""Extraction against one prompt at a time, first tokens and the safety vector against the reference's
head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.clip_prompts import FRAMES, audio_bank, make_batch, prompts
from helpers.tensors import relative_error
from rrs_jax import equations, safety_vector
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.frozen.extraction import extract_all, extract_reps, first_tokens
from rrs_jax.inputs.batching import bucket_lengths
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.weights.load import load_weights


@pytest.fixture(scope="module")
def model(folder):
    return load_weights(folder, mesh=make_mesh(2, 2, 2))


def test_extraction_in_buckets_gives_every_prompts_own_representation_in_order(reference, model, clips):
    """Seven prompts in batches of three: short last batch, two lengths, padding to the mesh's four rows."""
    bank, offsets = audio_bank(model, clips)
    rng = np.random.default_rng(1)
    rows, row_clips = [sum(parts, []) for parts in zip(prompts(rng), prompts(rng), strict=True)]
    rows, row_clips = rows[:7], row_clips[:7]
    counts = [[audio_token_count(int(FRAMES[c])) for c in clips_] for clips_ in row_clips]
    table = [(ids, [offsets[c] for c in own], n) for ids, own, n in zip(rows, row_clips, counts, strict=True)]
    buckets = bucket_lengths([len(ids) for ids in rows], 2, 8)
    ours = extract_all(model, table, bank, batch_size=3, buckets=buckets)
    assert ours.shape == (7, 48) and ours.dtype == np.float32

    singles = [make_batch([ids], [own], offsets) for ids, own in zip(rows, row_clips, strict=True)]
    graphdef, state = nnx.split(model)
    one = jax.jit(
        lambda state, batch: nnx.merge(graphdef, state).representations(batch, jnp.asarray(bank))[0]
    )
    expected = [one(state, batch) for batch in singles]
    assert relative_error(ours, np.stack(expected)) < 1e-5
    assert relative_error(extract_reps(model, singles[:2], bank), np.stack(expected[:2])) < 1e-5
    ids = torch.tensor([rows[2]])  # the prompt without audio, by transformers
    with torch.no_grad():
        last = reference(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()
    assert relative_error(ours[2], last) < 1e-5


def test_first_tokens(reference, model):
    """Hidden states chosen as multiples of head rows: their likeliest token is computed by torch."""
    rng = np.random.default_rng(2)
    states = rng.normal(size=(70, 48)).astype(np.float32)
    weight = reference.lm_head.weight.detach().numpy()
    states[:40] = 5 * weight[40]
    with torch.no_grad():
        expected = reference.lm_head(torch.tensor(states)).argmax(-1).numpy()
    np.testing.assert_array_equal(first_tokens(model, states), expected)
    assert (expected == 40).sum() >= 40
    assert len(first_tokens(model, states[:0])) == 0


@pytest.mark.parametrize("token_ids", [[40], [40, 7]])
def test_the_safety_vector_reads_the_models_own_head(reference, model, token_ids):
    """One call on the mesh's devices, from the head that is cut over them."""
    rng = np.random.default_rng(3)
    refused, benign = rng.normal(size=(2, 30, 48)).astype(np.float32)
    row = reference.lm_head.weight.detach().numpy()[token_ids].mean(axis=0)
    expected = safety_vector(refused, benign, row, 25)
    ours = equations.safety_vector(refused, benign, model.output_head(), np.array(token_ids), top_m=25.0)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
