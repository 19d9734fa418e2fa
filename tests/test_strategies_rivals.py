"""The rivals against torch and NumPy: losses of rerouting and HARC, a steered model's states and logits."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from helpers.clip_prompts import FRAMES, audio_bank, make_batch, prompts, torch_inputs
from helpers.dense_step import HARMFUL, PROMPTS, compare
from helpers.tensors import relative_error
from rrs_jax.config import default_config
from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T
from rrs_jax.distributed.mesh import make_mesh, replicated
from rrs_jax.errors import UserError
from rrs_jax.files import write_jsonl
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.models.decoder_pass import Wanted
from rrs_jax.models.steering import steered
from rrs_jax.run import pipeline
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder
from rrs_jax.strategies.extracted import read_extracted
from rrs_jax.strategies.rivals import harc, rerouting
from rrs_jax.strategies.rivals.layers import chosen_layers
from rrs_jax.testing import twin_rows
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


def remember_layers(monkeypatch) -> dict:
    """Returns a dict that will hold what each layer of PEFT's model gives."""
    wrap, seen = peft.get_peft_model, {}

    def remembering(model, config):
        adapted = wrap(model, config)
        for i, layer in enumerate(adapted.base_model.model.layers):
            layer.register_forward_hook(
                lambda _, __, output, i=i: seen.__setitem__(
                    i, output[0] if isinstance(output, tuple) else output
                )
            )
        return adapted

    monkeypatch.setattr(peft, "get_peft_model", remembering)
    return seen


def test_rerouting(reference, folder, clips, monkeypatch):
    """The frozen states come from the model without adapters, the others from the one with them."""
    rows, row_clips = prompts(np.random.default_rng(5))
    layers = (0, 2)
    before = torch.tensor(layer_states(reference, rows, clips, layers)[0]).double()
    seen = remember_layers(monkeypatch)

    def expected(hidden, _):
        now = torch.stack(
            [torch.stack([seen[i][r, len(row) - 1] for i in layers]) for r, row in enumerate(rows)]
        )
        turned = torch.relu(torch.nn.functional.cosine_similarity(now, before, dim=-1)) * 3.0
        kept = torch.linalg.vector_norm(now - before, dim=-1)
        return torch.where(torch.tensor(HARMFUL), turned.mean(1), kept.mean(1))

    strategy = rerouting.Rerouting(HARMFUL, layers, 3.0)
    compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)


def test_rerouting_begins_without_a_gradient_of_nan(folder, clips):
    """A benign sample has not moved at the start, where the norm has no derivative."""
    model = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))
    rows, row_clips = prompts(np.random.default_rng(5))
    bank, offsets = audio_bank(model, clips)
    batch = make_batch(rows, row_clips, offsets)
    strategy = rerouting.Rerouting(np.zeros(4, bool), (1,), 3.0)
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


def test_harc(reference, folder, clips, monkeypatch):
    """Both sides of every hinge, the KL of benign rows, and states of two positions behind two layers; then
    the KL alone of two rows whose prompt stays."""
    rows, row_clips = prompts(np.random.default_rng(5))
    layers, closing, margin, kl = (1, 2), 3, 0.04, 7.0
    rng = np.random.default_rng(4)
    directions, means = rng.normal(size=(2, 2, 48)), rng.normal(size=(3, 2, 2, 48)) * 0.3
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions, means = directions.astype(np.float32), means.astype(np.float32)
    chances = torch.tensor(layer_states(reference, rows, clips, layers)[1]).double().softmax(-1)
    seen, hinges, stays = remember_layers(monkeypatch), [], np.zeros(3, bool)

    def expected(hidden, head):
        losses = []
        for r, row in enumerate(rows):
            loss = torch.zeros((), dtype=torch.float64)
            for place, position in enumerate((len(row) - 1, len(row) - 1 - closing)):
                for i, layer in enumerate(layers):
                    state = seen[layer][r, position] - torch.tensor(means[PROMPTS[r], i, place]).double()
                    direction = torch.tensor(directions[i, place]).double()
                    cosine = torch.nn.functional.cosine_similarity(state, direction, dim=0)
                    hinge = torch.relu(margin - cosine if HARMFUL[r] else cosine)
                    hinges.append((HARMFUL[r], bool(hinge > 0)))
                    loss = loss + hinge / len(layers) * (not stays[PROMPTS[r]])
            if not HARMFUL[r] or stays[PROMPTS[r]]:
                now = torch.log_softmax(head @ hidden[r, len(row) - 1], -1)
                loss = loss + kl * torch.nn.functional.kl_div(now, chances[r], reduction="sum")
            losses.append(loss)
        return torch.stack(losses)

    strategy = harc.HARC(HARMFUL, directions, means, stays, layers, closing, margin, kl)
    compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)
    assert len(set(hinges)) == 4
    stays[PROMPTS[0]] = True
    compare(strategy, expected, rows, row_clips, reference, folder, clips, monkeypatch)
    assert {bool(stays[p]) for p in PROMPTS} == {True, False}
    assert {bool(HARMFUL[r]) for r in range(len(rows)) if stays[PROMPTS[r]]} == {True, False}


@pytest.fixture(scope="module")
def trained(whole_folder, sound_files, tmp_path_factory):
    """A run of harc with a margin above what the frozen model has; returns its config, context and loss."""
    path = tmp_path_factory.mktemp("harc")
    write_jsonl(path / "manifest.jsonl", twin_rows(sound_files))
    config = default_config()
    config.strategy, config.model.path, config.model.dtype = "harc", str(whole_folder), "float32"
    config.data.manifest = config.data.eval_manifest = str(path / "manifest.jsonl")
    config.run_dir = str(path / "run")
    config.rivals.layers, config.rivals.harc_margin, config.penalty.weight = ("1", "2"), 0.8, 0.0
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 40, 8, 3e-3
    config.report.representation_epochs = ()
    pipeline.run(config, ("data", "extract", "train"))
    context = RunContext(config, RunFolder(config.run_dir, config))
    extracted = read_extracted(context.folder.path / "harc.safetensors")
    return config, context, harc.build(extracted, context.training_set().samples, config)


def states_of(context, model, prompts) -> np.ndarray:
    """Returns states behind layers 1 and 2 at the last token and at the one before <|im_end|>, by one pass
    over the whole prompts: (prompts, 2, 2, D)."""
    bank, end = context.training_set().frozen.bank, context.load_processor().special_tokens["<|im_end|>"]
    backs = {ids[::-1].index(end) + 1 for ids, _, _ in prompts}
    assert len(backs) == 1  # every prompt ends with the same tokens
    batch = collate(prompts, max(len(ids) for ids, _, _ in prompts), model.config.audio_token_id)
    batch = jax.tree.map(jnp.asarray, batch)
    states = model(batch, bank.array, Wanted(each_layer=(0, *backs))).each_layer
    return np.swapaxes(np.asarray(states, np.float64)[1:], 0, 1)


def test_harcs_directions(trained):
    config, context, strategy = trained
    training_set = context.training_set()
    frozen, harmful = training_set.frozen, training_set.samples.harmful

    def states(chosen, text):
        prompts = [frozen.prompt(i, text) for i in np.flatnonzero(chosen)]
        return states_of(context, frozen.model, prompts).mean(axis=0)

    refused, asked, benign = (
        states(harmful, PROMPT_REFUSAL),
        states(harmful, PROMPT_T),
        states(~harmful, PROMPT_T),
    )
    expected = np.stack([(refused - benign)[:, 0], (asked - benign)[:, 1]], axis=1)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    assert relative_error(strategy.directions, expected) < 1e-4
    means = np.stack([states(~harmful, text) for text in PROMPT_POOL])
    assert relative_error(strategy.means, means) < 1e-4
    np.testing.assert_allclose(
        strategy.examples(np.array([5, 0]), np.array([9, 2]))["mean"], means[[9, 2]], atol=1e-4
    )


def test_training_with_harc(trained):
    """Harmful questions' cosines rise to the margin, at both places, and benign ones' do not."""
    config, context, strategy = trained
    training_set = context.training_set()
    harmful = training_set.samples.harmful
    prompts = [training_set.frozen.pool_prompt(i, 3) for i in range(len(harmful))]
    found = []
    for model in (training_set.frozen.model, context.restore_adapters()):
        moved = states_of(context, model, prompts) - strategy.means[3]
        cosines = np.sum(moved * strategy.directions, axis=-1) / np.linalg.norm(moved, axis=-1)
        found.append((cosines[harmful].mean(axis=(0, 1)), np.maximum(cosines[~harmful], 0).mean()))
    (before, benign_before), (after, benign_after) = found
    assert (before < 0.6).all() and (after > 0.75).all()
    assert benign_after < benign_before < 0.2


@pytest.mark.parametrize("rival", [harc, rerouting])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lora.layers": 2}, "rivals.layers: training changes nothing behind layer 1, since lora.layers has"),
        ({"rivals.layers": ("1", "3")}, "rivals.layers: 3 is no layer of the decoder's 3; choose 0 to 2"),
    ],
)
def test_layers_that_cannot_be_trained_are_a_sentence(trained, rival, fields, reason):
    config, context, _ = trained
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    training_set = context.training_set()
    with pytest.raises(UserError, match=reason):
        rival.extract(training_set.samples, training_set.frozen, config)


def test_layers_where_none_are_given():
    """Of 24 and 28 layers, with adapters in all, in the upper ones, and in the last alone."""
    assert chosen_layers((), 28, harc.SHARES) == [20, 21, 22, 23]
    assert chosen_layers((), 24, rerouting.SHARES) == [8, 16]
    assert chosen_layers((), 28, harc.SHARES, 22) == [22, 23]
    assert chosen_layers((), 24, rerouting.SHARES, 12) == [12, 16]
    assert chosen_layers((), 24, harc.SHARES, 23) == [23]
    assert chosen_layers(("5", "3"), 24, harc.SHARES, 3) == [3, 5]
