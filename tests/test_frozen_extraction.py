"""Extraction against one prompt at a time, the safety vector against equations 9 and 10 in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.clip_prompts import FRAMES, audio_bank, make_batch, prompts
from helpers.tensors import relative_error
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.frozen.extraction import (
    Representations,
    extract_all,
    extract_reps,
    load_representations,
    premise,
    safety_vector,
    save_representations,
)
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


def in_numpy(harmful_refusal, benign, head_row, top_m):
    """Equations 9 and 10, sample by sample and feature by feature, float64."""
    h, b, w = (x.astype(np.float64) for x in (harmful_refusal, benign, head_row))
    delta = sum(h[n] - b[n] for n in range(len(h))) / len(h)
    contribution = w * delta
    if top_m == "positive":
        chosen = {p for p in range(len(w)) if contribution[p] > 0}
    else:
        chosen = set(sorted(range(len(w)), key=lambda p: -contribution[p])[: round(top_m / 100 * len(w))])
    return delta, contribution, np.array([delta[p] if p in chosen else 0.0 for p in range(len(w))])


@pytest.mark.parametrize("top_m", [51, 25, 12.5, 100, "positive"])
def test_safety_vector(top_m):
    rng = np.random.default_rng(0)
    # Large common values beside a small difference, as the final norm's outlier features have.
    common = rng.normal(size=130) * 100
    harmful = (common + rng.normal(size=(701, 130)) + 0.05).astype(np.float32)
    benign = (common + rng.normal(size=(701, 130))).astype(np.float32)
    head_row = rng.normal(size=130).astype(np.float32)
    delta, contribution, vector = in_numpy(harmful, benign, head_row, top_m)
    ours = safety_vector(harmful, benign, head_row, top_m)
    assert relative_error(ours.delta_mean, delta) < 1e-5
    assert relative_error(ours.contribution, contribution) < 1e-5
    assert relative_error(ours.vector, vector) < 1e-5
    assert ours.positive_share == pytest.approx((contribution > 0).mean())
    assert ours.delta_logit == pytest.approx(contribution.sum(), rel=1e-4)
    assert ours.delta_logit_selected == pytest.approx((head_row * vector).sum(), rel=1e-4)
    assert ours.selected.sum() == np.count_nonzero(vector)


@pytest.mark.parametrize("top_m", [0, -3, 101, float("nan"), "most", True, None])
def test_top_m_outside_its_range_is_refused(top_m):
    with pytest.raises(UserError, match="rrs.top_m"):
        safety_vector(np.ones((2, 4)), np.zeros((2, 4)), np.ones(4), top_m)


def test_premise_counts_the_first_tokens(reference, model):
    """Hidden states chosen as multiples of head rows: their likeliest token is computed by torch."""
    rng = np.random.default_rng(2)
    states = [rng.normal(size=(n, 48)).astype(np.float32) for n in (70, 33, 5)]
    weight = reference.lm_head.weight.detach().numpy()
    states[0][:40] = 5 * weight[40]
    shares = premise(
        model, Representations(harmful=states[1], harmful_refusal=states[0], benign=states[2]), 40
    )
    with torch.no_grad():
        tokens = [reference.lm_head(torch.tensor(x)).argmax(-1).numpy() for x in states]
    expected = {"harmful": tokens[1], "harmful_refusal": tokens[0], "benign": tokens[2]}
    assert shares == {name: pytest.approx(np.mean(token == 40)) for name, token in expected.items()}
    assert shares["harmful_refusal"] > 0.5


def test_representations_file(tmp_path):
    rng = np.random.default_rng(3)
    reps = Representations(*(rng.normal(size=(6, 8)).astype(np.float32) for _ in range(3)))
    vector = safety_vector(reps.harmful_refusal, reps.benign, rng.normal(size=8), 50)
    path = tmp_path / "representations.safetensors"
    save_representations(path, reps, vector, {"model": "m", "top_m": 50, "refusal_token_id": 40})
    loaded, vectors, metadata = load_representations(path)
    jax.tree.map(np.testing.assert_array_equal, vars(loaded), vars(reps))
    np.testing.assert_array_equal(vectors["safety_vector"], vector.vector)
    assert metadata == {"model": "m", "top_m": "50", "refusal_token_id": "40"}

    import safetensors.numpy

    names = {"harmful", "harmful_refusal", "benign", "delta_mean", "contribution", "safety_vector"}
    assert set(safetensors.numpy.load_file(path)) == names
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cut short"):
        load_representations(path)
