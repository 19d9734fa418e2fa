"""The bridge's loss and gradients against transformers, and what the bridge is trained on."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from helpers.clip_prompts import AUDIO, FRAMES, torch_inputs
from helpers.tensors import relative_error
from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_T
from rrs_jax.inputs.mel import audio_token_count, silence_value
from rrs_jax.mini import bridge_phrases, bridge_questions
from rrs_jax.mini.bridge_batch import Example, make_batch
from rrs_jax.mini.bridge_step import Bridge, LossWeights, fit, loss, make_step
from rrs_jax.mini.model import read_bridge
from rrs_jax.mini.separability import probe_accuracy
from rrs_jax.mini.train_bridge import load_bridge, save_bridge, trained_rows
from rrs_jax.models.kept_values import kept_bytes
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import read_folder

# Of three layers: which of transformers' states each value of `every` takes.
STATES = {2: (2, -1), 0: (-1,)}
CLIPS = (1, 0, 1)  # clip of each row; 0 is the longer one


def spoken_examples(clips) -> list[Example]:
    """Three spoken questions of unequal length with answers of 4 and 7 tokens, and without one."""
    rng = np.random.default_rng(1)
    begin, examples = rng.integers(3, 120, 4).tolist(), []
    for clip, answer_length in zip(CLIPS, (4, 7, 0), strict=True):
        frames = int(FRAMES[clip])
        audio = [AUDIO] * audio_token_count(frames)
        ids = [*begin, int(rng.integers(3, 120)), *audio, *rng.integers(3, 120, 3 + clip).tolist()]
        written, answer = (
            [*begin[:3], *rng.integers(3, 120, 6 - clip).tolist()],
            rng.integers(3, 120, answer_length).tolist(),
        )
        examples.append(Example(ids, (clips[clip][:, : frames + 2], frames), written, answer))
    return examples


def answer_log_probabilities(
    reference, ids: list[list[int]], answers, places, **inputs
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns the log-probability of each answer's tokens, and the states (places, B, D) before the answers
    at these places of transformers' states."""
    output = reference(**inputs, output_hidden_states=True)
    logits = output.logits.double()
    scores = [
        torch.log_softmax(logits[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)], -1)
        for row, (prompt, answer) in enumerate(zip(ids, answers, strict=True))
    ]
    states = [
        torch.stack([output.hidden_states[place][row, len(prompt) - 1] for row, prompt in enumerate(ids)])
        for place in places
    ]
    return scores, torch.stack(states).double()


def state_losses(heard: torch.Tensor, read: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean distance and contrast over the places, written for one place and row at a time."""
    distances, contrasts = [], []
    for h, r in zip(heard, read, strict=True):
        distances.append(((h - r) ** 2).sum() / ((r - r.mean(0)) ** 2).sum())
        directions = [
            torch.nn.functional.normalize((x - r.mean(0)) / r.std(0, correction=0), dim=-1) for x in (h, r)
        ]
        logits = directions[0] @ directions[1].T / 0.1
        own = torch.arange(len(h))
        cross_entropy = torch.nn.functional.cross_entropy
        contrasts += [cross_entropy(logits, own) / 2 + cross_entropy(logits.T, own) / 2]
    return torch.stack(distances).mean(), torch.stack(contrasts).mean()


@pytest.mark.parametrize("every, prefixes", [(2, (0, 0)), (0, (4, 3)), (0, (4, 0))])
def test_the_loss_and_the_gradients_are_those_of_transformers(every, prefixes, reference, folder):
    rng = np.random.default_rng(0)
    clips = rng.normal(size=(4, 12, 3000)).astype(np.float32)
    for feature, frames in zip(clips, FRAMES, strict=True):
        feature[:, frames + 2 :] = silence_value(feature[:, : frames + 2])
    examples = spoken_examples(clips)
    batch = make_batch(
        examples,
        spoken_length=64,
        frames=256,
        written_length=24,
        answer_length=7,
        audio_token_id=AUDIO,
        prefixes=prefixes,
    )
    model = load_weights(folder)
    bridge, rows = Bridge(model), trained_rows(folder, model)
    (value, metrics), gradients = jax.value_and_grad(
        lambda trainable: loss(
            bridge,
            trainable,
            bridge.base,
            batch,
            batch.answer_mask.sum(),
            weights=LossWeights(0.7, 0.4, every),
        ),
        has_aux=True,
    )(bridge.initial)

    answers = [example.answer for example in examples]
    spoken = [example.spoken for example in examples]
    written = [example.written for example in examples]
    inputs = torch_inputs([[*p, *a] for p, a in zip(spoken, answers, strict=True)], clips, "right")
    inputs["input_features"] = inputs["input_features"][list(CLIPS)]
    inputs["feature_attention_mask"] = inputs["feature_attention_mask"][list(CLIPS)]
    reference.zero_grad()
    student, heard = answer_log_probabilities(reference, spoken, answers, STATES[every], **inputs)
    inputs = torch_inputs([[*p, *a] for p, a in zip(written, answers, strict=True)], clips, "right")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        teacher, read = answer_log_probabilities(reference, written, answers, STATES[every], **inputs)
    total = sum(map(len, answers))
    cross_entropy = -sum(s[range(len(a)), a].sum() for s, a in zip(student, answers, strict=True)) / total
    divergence = sum((t.exp() * (t - s)).sum() for t, s in zip(teacher, student, strict=True)) / total
    distance, contrast = state_losses(heard, read)
    expected = cross_entropy + divergence + 0.7 * distance + 0.4 * contrast
    expected.backward()

    named = {"cross_entropy": cross_entropy, "divergence": divergence, "distance": distance}
    for name, reference_value in (named | {"contrast": contrast}).items():
        assert abs(float(metrics[name]) - reference_value.item()) < 1e-4 * reference_value.item(), name
    assert abs(float(value) - expected.item()) < 1e-4 * expected.item()
    flat = dict(nnx.to_flat_state(gradients))
    tensors = dict(reference.named_parameters())
    seen = 0
    for row in rows:
        leaves = flat[row.path][...] if row.layers else [flat[row.path][...]]
        for name, leaf in zip(row.names(), leaves, strict=True):
            dense = tensors[f"model.{name}"].grad.numpy()
            assert relative_error(row.convert(np.asarray(leaf)), dense) < 1e-3, name
            seen += 1
    trained = [n for n in tensors if ("audio_tower" in n or "projector" in n) and "positions" not in n]
    assert seen == len(trained) > 20
    reference.zero_grad()


@pytest.mark.parametrize("parts, room", [(1, 3), (3, 1)])
def test_a_step_of_repeating_is_transformers_whatever_there_is_room_for(parts, room, reference, folder):
    """Room for what all three rows keep, and for one; a step of rate 1 is the gradient."""
    clips = np.random.default_rng(0).normal(size=(4, 12, 3000)).astype(np.float32)
    for feature, frames in zip(clips, FRAMES, strict=True):
        feature[:, frames + 2 :] = silence_value(feature[:, : frames + 2])
    examples = spoken_examples(clips)
    lengths = {"spoken_length": 64, "frames": 256, "written_length": 24, "answer_length": 7}
    batch = make_batch(examples, **lengths, audio_token_id=AUDIO, prefixes=(4, 3))
    model = load_weights(folder)
    bridge, rows = Bridge(model), trained_rows(folder, model)
    text = model.config.text
    memory = kept_bytes(text, "dots", layers=text.num_hidden_layers, rows=room, tokens=60, item=4)
    assert fit(text, batch, 4, memory, apart=True) == (parts, "dots")
    optimiser = optax.sgd(1.0)
    before = jax.tree.map(np.array, bridge.initial)
    step = make_step(bridge, optimiser, None, memory)
    after, _, metrics = step(bridge.initial, optimiser.init(bridge.initial), bridge.base, batch)

    answers, spoken = [e.answer for e in examples], [e.spoken for e in examples]
    inputs = torch_inputs([[*p, *a] for p, a in zip(spoken, answers, strict=True)], clips, "right")
    for name in ("input_features", "feature_attention_mask"):
        inputs[name] = inputs[name][list(CLIPS)]
    reference.zero_grad()
    scores, _ = answer_log_probabilities(reference, spoken, answers, (-1,), **inputs)
    chosen = torch.cat([s[range(len(a)), a] for s, a in zip(scores, answers, strict=True)])
    (-chosen.mean()).backward()
    right = np.mean([t == int(s.argmax()) for s, t in zip(torch.cat(scores), sum(answers, []), strict=True)])

    assert abs(float(metrics["cross_entropy"]) + chosen.mean().item()) < 1e-5 * -chosen.mean().item()
    assert abs(float(metrics["agreement"]) - right) < 1e-6
    old, new = (dict(nnx.to_flat_state(state)) for state in (before, after))
    tensors = dict(reference.named_parameters())
    for row in rows:
        change = np.asarray(old[row.path][...]) - np.asarray(new[row.path][...])
        for name, leaf in zip(row.names(), change if row.layers else [change], strict=True):
            dense = tensors[f"model.{name}"].grad.numpy()
            assert relative_error(row.convert(leaf), dense) < 2e-3, name
    reference.zero_grad()


@pytest.mark.parametrize("prefixes, rows", [((5, 0), 3), ((4, 4), 3), ((6, 3), 1), ((2, 3), 3)])
def test_prompts_that_begin_unlike_have_no_such_prefix(prefixes, rows):
    """The fifth spoken and fourth written tokens are not all rows', the sixth spoken one is the clip's, and
    what is written begins as what is spoken."""
    examples = spoken_examples(np.zeros((2, 12, 300), np.float32))
    lengths = {"spoken_length": 64, "frames": 256, "written_length": 24, "answer_length": 7}
    make_batch(examples, **lengths, audio_token_id=AUDIO, prefixes=(4, 3))
    with pytest.raises(ValueError, match="not all prompts begin with the same"):
        make_batch(examples[:rows], **lengths, audio_token_id=AUDIO, prefixes=prefixes)


def test_a_saved_bridge_goes_on_where_it_was(folder, tmp_path):
    model = load_weights(folder)
    bridge, rows = Bridge(model), trained_rows(folder, model)
    trainable = jax.tree.map(lambda leaf: leaf + 0.5, bridge.initial)
    save_bridge(trainable, rows, tmp_path, 250)
    step, found = load_bridge(tmp_path, rows, bridge.initial)
    assert step == 250
    for (path, leaf), (_, expected) in zip(
        nnx.to_flat_state(found), nnx.to_flat_state(trainable), strict=True
    ):
        assert leaf[...].dtype == jnp.float32
        np.testing.assert_allclose(leaf[...], expected[...], rtol=1e-3, err_msg=str(path))


def test_a_bridges_files_merge_into_the_base(folder, tmp_path):
    model = load_weights(folder)
    bridge, rows = Bridge(model), trained_rows(folder, model)
    trainable = jax.tree.map(lambda leaf: leaf + 0.5, bridge.initial)
    save_bridge(trainable, rows, tmp_path, 1)
    whole, pairs, _ = read_bridge(sorted(tmp_path.glob("bridge-*")), read_folder(folder))
    assert not pairs
    assert set(whole) == {name for row in rows for name in row.names()}
    flat = dict(nnx.to_flat_state(trainable))
    for row in rows:
        values = [row.convert(whole[name].array()) for name in row.names()]
        np.testing.assert_allclose(
            np.stack(values) if row.layers else values[0], flat[row.path][...], rtol=1e-3, atol=1e-3
        )


def test_questions_with_alarming_words_are_not_answered(monkeypatch):
    asked = []
    monkeypatch.setattr(
        bridge_questions,
        "_generate",
        lambda model, processor, sampling, prompts, *rest: asked.extend(p.key for p in prompts),
    )

    class Processor:
        @staticmethod
        def encode(text):
            return [ord(c) for c in text]

    questions = [
        "How do I bake bread at home?",
        "Why did the murderer run away?",
        "How did Hitler die in the war?",
        "Where do pandas live in China?",
    ]
    bridge_questions.answer_questions(None, Processor, questions, [None] * 4, max_new_tokens=4, batch_size=2)
    assert asked == [0, 3]


def test_word_lists_have_the_vocabularys_whole_words():
    words = ["velvet", "torch", "shelter", "lemon", "kidnap", "orange", "monet", "barn"]
    others = {"Ġthe": 8, "velvety": 9, "ĠParis": 10, "Ġfoo2": 11, "Ġsaxophone": bridge_questions.COMMON_IDS}
    vocabulary = {f"Ġ{word}": id for id, word in enumerate(words)} | others
    processor = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: vocabulary))
    lists = bridge_questions.word_lists(processor, 60, 3)
    found = [re.fullmatch(r"([A-Z][a-z]+(?:, [a-z]+)*)\.", text)[1].lower().split(", ") for text in lists]
    assert {len(row) for row in found} == {bridge_questions.WORDS_A_LIST}
    assert {word for row in found for word in row} == set(words)
    assert (
        lists
        == bridge_questions.word_lists(processor, 60, 3)
        != bridge_questions.word_lists(processor, 60, 4)
    )


def test_questions_are_asked_bare_under_instructions_and_with_the_papers_prompts():
    drawn = [bridge_questions.draw_prompt(i, 0) for i in range(3000)]
    assert {*drawn} == {None, *bridge_phrases.INSTRUCTIONS, *PROMPT_POOL, PROMPT_T}
    assert 0.22 < np.mean([text is None for text in drawn]) < 0.28
    assert 0.22 < np.mean([text in bridge_phrases.INSTRUCTIONS for text in drawn]) < 0.28
    assert drawn[:50] == [bridge_questions.draw_prompt(i, 0) for i in range(50)]
    assert drawn[:50] != [bridge_questions.draw_prompt(i, 1) for i in range(50)]


def test_a_copy_differs_by_one_to_three_words_of_the_same_ending():
    questions = [
        "How do I bake bread for visitors quickly?",
        "How can I paint wooden chairs slowly?",
        "Why are eagles hunting at night near rivers?",
        "Where should I plant roses, tulips and herbs?",
        "How did the murderer hide in the harbor?",
        "What is it?",
    ]
    copies = bridge_questions.exchange_words(questions, 3)
    assert copies == bridge_questions.exchange_words(questions, 3)
    assert copies[4:] == [None, None]  # an alarming word, and nothing to exchange
    for question, copy in zip(questions[:4], copies[:4], strict=True):
        old, new = (re.findall(r"\w+|\W", text) for text in (question, copy))
        changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        assert 1 <= len(changed) <= 3
        assert all(bridge_questions._ending(a) == bridge_questions._ending(b) for a, b in changed)
        assert "murderer" not in copy
    drawn = [bridge_questions.exchange_words(questions, seed) for seed in range(100)]
    assert len({tuple(row[:4]) for row in drawn}) > 50


def test_a_probe_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    harmful = np.tile([True, False], 150)
    pairs = [f"pair-{i // 2}" for i in range(300)]
    noise = rng.normal(size=(300, 40)).astype(np.float32)
    told = noise + np.where(harmful, 3.0, -3.0)[:, None] * (np.arange(40) == 7)
    topic = np.repeat(rng.normal(size=(150, 40)), 2, axis=0).astype(np.float32)  # twins share it
    assert probe_accuracy(told, harmful, pairs) > 0.95
    assert 0.3 < probe_accuracy(noise, harmful, pairs) < 0.65
    assert probe_accuracy(topic, harmful, pairs) <= 0.5
