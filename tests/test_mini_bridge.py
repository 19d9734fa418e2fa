"""The bridge's loss and the projector's gradients against transformers, and what the bridge is trained on."""

import contextlib
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch

from helpers.clip_prompts import AUDIO, FRAMES, torch_inputs
from helpers.tensors import relative_error
from rrs_jax.inputs.mel import audio_token_count, silence_value
from rrs_jax.mini import bridge_questions
from rrs_jax.mini.bridge_step import Bridge, Example, loss, make_batch
from rrs_jax.mini.separability import probe_accuracy
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.weights.load import load_weights

CLIPS = (1, 0)  # clip of each row; 0 is the longer one


def spoken_examples(clips) -> list[Example]:
    """Two spoken questions of unequal length with answers of 4 and 7 tokens."""
    rng = np.random.default_rng(1)
    examples = []
    for clip, answer_length in zip(CLIPS, (4, 7), strict=True):
        frames = int(FRAMES[clip])
        audio = [AUDIO] * audio_token_count(frames)
        ids = [*rng.integers(3, 120, 5).tolist(), *audio, *rng.integers(3, 120, 3 + clip).tolist()]
        written, answer = (
            rng.integers(3, 120, 9 - clip).tolist(),
            rng.integers(3, 120, answer_length).tolist(),
        )
        examples.append(Example(ids, (clips[clip][:, : frames + 2], frames), written, answer))
    return examples


def answer_log_probabilities(
    reference, ids: list[list[int]], answers, **inputs
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns the log-probability of each answer's tokens, and the states of the prompts' last tokens."""
    output = reference(**inputs, output_hidden_states=True)
    logits = output.logits.double()
    scores = [
        torch.log_softmax(logits[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)], -1)
        for row, (prompt, answer) in enumerate(zip(ids, answers, strict=True))
    ]
    ends = [output.hidden_states[-1][row, len(prompt) - 1] for row, prompt in enumerate(ids)]
    return scores, torch.stack(ends).double()


@contextlib.contextmanager
def adapted(encoder, pairs, scale: float):
    """The reference's encoder with the pairs merged into its weights, while the teacher does not hear."""
    originals = []
    for target, pair in pairs.items():
        for i, layer in enumerate(encoder.layers):
            weight = getattr(layer if target.startswith("fc") else layer.self_attn, target).weight
            originals.append((weight, weight.detach().clone()))
            added = np.asarray(pair["lora_a"][i]) @ np.asarray(pair["lora_b"][i]) * scale
            weight.data += torch.tensor(added.T)
    yield
    for weight, original in originals:
        weight.data.copy_(original)


def test_the_loss_and_the_gradients_are_those_of_a_dense_model(reference, folder):
    rng = np.random.default_rng(0)
    clips = rng.normal(size=(4, 12, 3000)).astype(np.float32)
    for feature, frames in zip(clips, FRAMES, strict=True):
        feature[:, frames + 2 :] = silence_value(feature[:, : frames + 2])
    lora = LoRAConfig(rank=2, alpha=4.0)
    examples = spoken_examples(clips)
    batch = make_batch(
        examples, spoken_length=64, frames=256, written_length=24, answer_length=7, audio_token_id=AUDIO
    )
    bridge = Bridge(load_weights(folder, lora=lora), lora)
    trainable = bridge.initial
    for pair in trainable["encoder"].values():
        pair["lora_b"] = jnp.asarray(0.1 * rng.normal(size=pair["lora_b"].shape), jnp.float32)
    (value, metrics), gradients = jax.value_and_grad(
        lambda trainable: loss(bridge, trainable, bridge.base, batch, distil=True, state_weight=0.7),
        has_aux=True,
    )(trainable)

    answers = [example.answer for example in examples]
    spoken = [example.spoken for example in examples]
    written = [example.written for example in examples]
    inputs = torch_inputs([[*p, *a] for p, a in zip(spoken, answers, strict=True)], clips, "right")
    inputs["input_features"] = inputs["input_features"][list(CLIPS)]
    inputs["feature_attention_mask"] = inputs["feature_attention_mask"][list(CLIPS)]
    reference.zero_grad()
    encoder = reference.model.audio_tower
    with adapted(encoder, trainable["encoder"], lora.scale):
        student, heard = answer_log_probabilities(reference, spoken, answers, **inputs)
        inputs = torch_inputs([[*p, *a] for p, a in zip(written, answers, strict=True)], clips, "right")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
        with torch.no_grad():
            teacher, read = answer_log_probabilities(reference, written, answers, **inputs)
        total = sum(map(len, answers))
        cross_entropy = -sum(s[range(len(a)), a].sum() for s, a in zip(student, answers, strict=True)) / total
        divergence = sum((t.exp() * (t - s)).sum() for t, s in zip(teacher, student, strict=True)) / total
        distance = ((heard - read) ** 2).sum() / ((read - read.mean(0)) ** 2).sum()
        expected = cross_entropy + divergence + 0.7 * distance
        expected.backward()

    assert abs(float(metrics["cross_entropy"]) - cross_entropy.item()) < 1e-4 * cross_entropy.item()
    assert abs(float(metrics["divergence"]) - divergence.item()) < 1e-4 * divergence.item()
    assert abs(float(metrics["state_distance"]) - distance.item()) < 1e-4 * distance.item()
    assert abs(float(value) - expected.item()) < 1e-4 * expected.item()
    projector = reference.model.multi_modal_projector.linear
    assert relative_error(gradients["projector"]["kernel"], projector.weight.grad.numpy().T) < 1e-4
    assert relative_error(gradients["projector"]["bias"], projector.bias.grad.numpy()) < 1e-4
    for target, pair in trainable["encoder"].items():
        modules = [layer if target.startswith("fc") else layer.self_attn for layer in encoder.layers]
        dense = np.stack([getattr(module, target).weight.grad.numpy().T for module in modules]) * lora.scale
        found = gradients["encoder"][target]
        assert relative_error(found["lora_a"], dense @ np.swapaxes(pair["lora_b"], 1, 2)) < 1e-4
        assert relative_error(found["lora_b"], np.swapaxes(pair["lora_a"], 1, 2) @ dense) < 1e-4
    reference.zero_grad()


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
    bridge_questions.answer_questions(None, Processor, questions, max_new_tokens=4, batch_size=2, seed=0)
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


def test_a_third_of_the_answers_follow_an_instruction():
    drawn = [bridge_questions.draw_instruction(i, 0) for i in range(3000)]
    assert 0.30 < np.mean([instruction is not None for instruction in drawn]) < 0.37
    assert {*drawn} == {None, *bridge_questions.INSTRUCTIONS}
    assert drawn[:50] == [bridge_questions.draw_instruction(i, 0) for i in range(50)]
    assert drawn[:50] != [bridge_questions.draw_instruction(i, 1) for i in range(50)]


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
