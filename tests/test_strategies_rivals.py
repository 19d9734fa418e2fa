"""The rivals against torch and NumPy: rerouting's loss, a steered model's states and logits, the probe."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch

from helpers.clip_prompts import FRAMES, audio_bank, make_batch, prompts, torch_inputs
from helpers.dense_step import HARMFUL, compare
from helpers.tensors import relative_error
from rrs_jax.distributed.mesh import make_mesh, replicated
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.models.steering import steered
from rrs_jax.strategies.rivals.rerouting import Rerouting
from rrs_jax.weights.load import load_weights


def layer_states(reference, rows, clips, layers, steering=None):
    """Returns each row's last token behind layers, by hooks; `steering` (layer to vector) is added to a
    layer's output."""
    caught, hooks = {}, []

    def hook(index):
        def change(_, __, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if steering and index in steering:
                hidden = hidden + torch.tensor(steering[index])
            caught[index] = hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return change

    decoder = reference.model.language_model
    hooks = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(decoder.layers)]
    with torch.no_grad():
        logits = reference(**torch_inputs(rows, clips, "right")).logits
    for each in hooks:
        each.remove()
    ends = [len(row) - 1 for row in rows]
    states = np.stack([[caught[i][r, end].numpy() for i in layers] for r, end in enumerate(ends)])
    return states, np.stack([logits[r, end].numpy() for r, end in enumerate(ends)])


def test_rerouting(reference, folder, clips, monkeypatch):
    """The frozen states come from the model without adapters, the others from the one with them."""
    rows, row_clips = prompts(np.random.default_rng(5))
    layers = (0, 2)
    before = torch.tensor(layer_states(reference, rows, clips, layers)[0]).double()
    seen = {}

    def expected(hidden, _):
        now = torch.stack(
            [torch.stack([seen[i][r, len(row) - 1] for i in layers]) for r, row in enumerate(rows)]
        )
        turned = torch.relu(torch.nn.functional.cosine_similarity(now, before, dim=-1)) * 3.0
        kept = torch.linalg.vector_norm(now - before, dim=-1)
        return torch.where(torch.tensor(HARMFUL), turned.mean(1), kept.mean(1))

    wrap = peft.get_peft_model

    def remembering(model, config):
        """PEFT's model, whose layers tell what they give."""
        adapted = wrap(model, config)
        for i, layer in enumerate(adapted.base_model.model.layers):
            layer.register_forward_hook(
                lambda _, __, output, i=i: seen.__setitem__(
                    i, output[0] if isinstance(output, tuple) else output
                )
            )
        return adapted

    monkeypatch.setattr(peft, "get_peft_model", remembering)
    strategy = Rerouting(HARMFUL, layers, 3.0)
    compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)


def test_rerouting_begins_without_a_gradient_of_nan(folder, clips):
    """A benign sample has not moved at the start, where the norm has no derivative."""
    model = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))
    rows, row_clips = prompts(np.random.default_rng(5))
    bank, offsets = audio_bank(model, clips)
    batch = make_batch(rows, row_clips, offsets)
    strategy = Rerouting(np.zeros(4, bool), (1,), 3.0)
    examples = strategy.examples(np.arange(4))

    def total(bank):
        return strategy.row_losses(model, batch, bank, examples).sum()

    value, gradient = jax.value_and_grad(total)(jnp.asarray(bank))
    assert value == 0 and np.all(np.asarray(gradient) == 0)


def test_a_steered_model(reference, folder, clips):
    mesh = make_mesh(devices=jax.devices()[:1])
    model = load_weights(folder, mesh=mesh)
    rows, row_clips = prompts(np.random.default_rng(5))
    bank, offsets = audio_bank(model, clips)
    batch, bank = make_batch(rows, row_clips, offsets), jnp.asarray(bank)
    vectors = np.random.default_rng(1).normal(size=(2, 48)).astype(np.float32)
    changed = steered(model, [0, 2], vectors, replicated(mesh))
    states, logits = layer_states(reference, rows, clips, (0, 1, 2), {0: vectors[0], 2: vectors[1]})
    plain, plain_logits = layer_states(reference, rows, clips, (0, 1, 2))
    assert relative_error(model.layer_states(batch, bank, (0, 1, 2)), plain) < 1e-4
    assert relative_error(changed.layer_states(batch, bank, (2, 0)), states[:, [2, 0]]) < 1e-4
    assert relative_error(changed.logits(changed.representations(batch, bank)), logits) < 1e-4
    assert (
        relative_error(model.logits(model.representations(batch, bank)), plain_logits) < 1e-4
    )  # it is as it was


def test_a_steered_models_answers(reference, folder, clips):
    """Decoding with a cache, against the whole sequence computed anew for every token."""
    mesh = make_mesh(devices=jax.devices()[:1])
    model = load_weights(folder, mesh=mesh)
    rows, row_clips = prompts(np.random.default_rng(5))
    bank, offsets = audio_bank(model, clips)
    vectors = np.random.default_rng(1).normal(size=(1, 48)).astype(np.float32)
    counts = [audio_token_count(int(frames)) for frames in FRAMES]
    asked = [
        (row, [offsets[c] for c in own], [counts[c] for c in own])
        for row, own in zip(rows, row_clips, strict=True)
    ]
    answers = {}
    for name, each in (("plain", model), ("steered", steered(model, [1], vectors, replicated(mesh)))):
        generator = Generator(
            each, SamplingConfig(max_new_tokens=5, greedy=True), eos_token_ids=[2], batch_size=4
        )
        answers[name] = [[]] * 4
        made = answers[name]
        listed = [Prompt(key=i, row=row) for i, row in enumerate(asked)]
        generator.generate(
            listed, jnp.asarray(bank), lambda i, tokens, made=made: made.__setitem__(i, list(tokens))
        )
    expected = [list(row) for row in rows]
    for _ in range(5):
        _, logits = layer_states(reference, expected, clips, (1,), {1: vectors[0]})
        for row, scores in zip(expected, logits, strict=True):
            row.append(int(scores.argmax()))
    expected = [row[-5:] for row in expected]
    assert all(2 not in row for row in expected)  # no answer ends early
    assert [list(map(int, row)) for row in answers["steered"]] == expected
    assert answers["plain"] != answers["steered"]
