"""The contrastive stage's loss against torch in float64, its batches and masks, and all of it on a random
model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import research.contrastive_stage as stage
import torch

from rrs_jax.testing import write_qwen2_audio

LAYERS = 4


def shuffled(pairs: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Labels and pairs of questions in random order."""
    rows = [(label, f"pair-{pair}") for pair in range(pairs) for label in (True, False)]
    rows = [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
    return np.array([label for label, _ in rows]), [pair for _, pair in rows]


def torch_loss(heard, read, harmful, pairs, gamma, margin, apart):
    """The loss for one anchor after another, its weights without a derivative."""
    heard, read = (states - states.mean(0) for states in (heard, read))
    cosine = torch.nn.functional.cosine_similarity
    losses, twins, copies = [], [], []
    for i in range(len(heard)):
        pull, push, twin = 0.0, 0.0, None
        for j in range(len(heard)):
            s = cosine(heard[i], heard[j], dim=0)
            if harmful[j] != harmful[i]:
                term = torch.exp(gamma * torch.relu(s + margin).detach() * (s - margin))
                push = push + term
                twin = term if pairs[j] == pairs[i] else twin
            elif j != i:
                pull = pull + torch.exp(-gamma * torch.relu(1 + margin - s).detach() * (s - 1 + margin))
        s = cosine(heard[i], read[i], dim=0)
        copy = torch.exp(-gamma * torch.relu(1 + margin - s).detach() * (s - 1 + margin))
        together = torch.log(1 + push * (pull + copy))
        losses.append(torch.log(1 + push * pull) + torch.log(1 + push * copy) if apart else together)
        twins.append(twin / push)
        copies.append(copy / (pull + copy))
    return torch.stack(losses), torch.stack(twins), torch.stack(copies)


@pytest.mark.parametrize(
    ("gamma", "margin", "apart"),
    [(32.0, 0.25, True), (1.0, 0.4, False), (4.0, 0.4, True), (32.0, 0.25, False)],
)
def test_loss_and_gradient_are_those_of_torch_in_float64(gamma, margin, apart):
    """Heard states lie near their twins and read copies. With the large γ a copy among others weighs
    nothing."""
    harmful, pairs = shuffled(4, 1)
    rng = np.random.default_rng(2)
    topics = dict(zip(sorted(set(pairs)), rng.normal(size=(4, 12)), strict=True))
    heard, read = (
        np.stack([topics[pair] for pair in pairs]) + 0.7 * rng.normal(size=(8, 12)) + 3.0 for _ in range(2)
    )
    theirs = [torch.tensor(states, requires_grad=True) for states in (heard, read)]
    expected = torch_loss(*theirs, harmful, pairs, gamma, margin, apart)
    expected[0].mean().backward()

    def mean_loss(states):
        cosines = stage.centred_cosines(*states)
        told = stage.circle_loss(cosines, stage.masks(harmful, pairs), gamma, margin, apart)
        return told[0].mean(), told

    ours = tuple(jnp.asarray(states, jnp.float32) for states in (heard, read))
    (_, told), gradients = jax.value_and_grad(mean_loss, has_aux=True)(ours)
    for numbers, reference in zip(told, expected, strict=True):
        np.testing.assert_allclose(numbers, reference.detach(), rtol=1e-4, atol=1e-4)
    for gradient, states in zip(gradients, theirs, strict=True):
        scale = theirs[0].grad.abs().max()
        np.testing.assert_allclose(np.asarray(gradient) / scale.item(), states.grad / scale, atol=1e-4)
    counts = theirs[1].grad.abs().max() / scale > 0.01
    assert scale > 0.01 and counts == (apart or gamma < 32)


def test_each_kind_of_question_counts_as_the_loss_says():
    harmful, pairs = np.array([True, False, False, True]), ["a", "b", "a", "b"]
    found = stage.masks(harmful, pairs)
    none = [0, 0, 0, 0]
    #  heard, then read
    assert found.alike.astype(int).tolist() == [
        [0, 0, 0, 1] + none, [0, 0, 1, 0] + none, [0, 1, 0, 0] + none, [1, 0, 0, 0] + none
    ]  # fmt: skip
    assert found.copies.astype(int).tolist() == [
        none + [1, 0, 0, 0], none + [0, 1, 0, 0], none + [0, 0, 1, 0], none + [0, 0, 0, 1]
    ]  # fmt: skip
    assert found.negatives.astype(int).tolist() == [
        [0, 1, 1, 0] + none, [1, 0, 0, 1] + none, [1, 0, 0, 1] + none, [0, 1, 1, 0] + none
    ]  # fmt: skip
    assert found.twins.astype(int).tolist() == [
        [0, 0, 1, 0] + none, [0, 0, 0, 1] + none, [1, 0, 0, 0] + none, [0, 1, 0, 0] + none
    ]  # fmt: skip


def test_batches_hold_eight_pairs_of_twins_and_a_pass_every_pair_once():
    harmful, pairs = shuffled(17, 3)
    named = np.array(pairs)
    batches = list(stage.twin_batches(pairs, 6, np.random.default_rng(0)))
    for chosen in batches:
        assert len(chosen) == len(set(chosen)) == 16
        labels, of_pair = harmful[chosen], named[chosen]
        assert (of_pair[::2] == of_pair[1::2]).all() and (labels[::2] != labels[1::2]).all()
        found = stage.masks(labels, of_pair)
        assert found.twins.sum(1).tolist() == [1] * 16
        assert found.negatives.sum(1).tolist() == (found.alike | found.copies).sum(1).tolist() == [8] * 16
        assert not (found.alike & found.negatives).any() and (found.twins <= found.negatives).all()
    for first, second in zip(batches[::2], batches[1::2], strict=True):  # two fill a pass over 17 pairs
        assert not set(named[first]) & set(named[second])
    assert batches[0].tolist() != batches[2].tolist() != batches[4].tolist()


def test_the_script_trains_below_a_layer_and_tells_before_and_after(tmp_path, capsys, monkeypatch):
    moved, measure = [], stage.measure

    def watched(model, *arguments):
        moved.append([np.abs(b).max((1, 2)) > 0 for _, b, _ in model.lora.pairs()])
        return measure(model, *arguments)

    monkeypatch.setattr(stage, "measure", watched)
    model, out = tmp_path / "model", tmp_path / "lines.jsonl"
    write_qwen2_audio(model, num_hidden_layers=LAYERS)
    arguments = [
        "--steps=3",
        "--seeds=2",
        "--rate=0.02",
        "--pairs_per_category=1",
        f"--out={out}",
        "--copies=apart",
    ]
    assert stage.main([f"--model={model}", *arguments]) == 0
    before, *seeds = [json.loads(line) for line in out.read_text().splitlines()]
    assert np.shape(moved) == (3, 7, LAYERS) and not np.any(moved[0])
    assert np.all(np.array(moved)[1:] == [True, True, False, False])
    assert [line["seed"] for line in (before, *seeds)] == [None, 0, 1]
    assert (before["layer"], before["pairs"], before["unseen_pairs"]) == (2, 14, 28)
    probes = [
        f"{kind} {way} {at}" for kind in ("heard", "read") for way in ("unseen", "carried") for at in (2, 4)
    ]
    probes += ["heard seen 2", "read seen 2"]
    for line in (before, *seeds):
        assert sorted(line["probes"]) == sorted(probes)
    for line in seeds:
        assert {"loss", "twin_share", "copy_share"} < line.keys()
        assert sorted(line["rises"]) == sorted(probes)
        for name, gained in line["rises"].items():
            difference = line["probes"][name]["right"] - before["probes"][name]["right"]
            assert abs(gained["points"] - difference) < 0.11
    assert seeds[0]["loss"] != seeds[1]["loss"] and seeds[0]["probes"] != before["probes"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1 + len(probes)


def test_a_layer_that_the_decoder_lacks_is_one_sentence(tmp_path, capsys):
    write_qwen2_audio(tmp_path, num_hidden_layers=LAYERS)
    assert stage.main([f"--model={tmp_path}", "--layer=5", "--pairs_per_category=1"]) == 2
    assert "--layer: is 5, the decoder has 4 layers; give at most 4." in capsys.readouterr().err
