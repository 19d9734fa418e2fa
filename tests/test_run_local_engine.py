"""Answers that start above the lower layers against transformers, and the evaluate stage with and without
them."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.answers import EOS, expected_answer
from helpers.clip_prompts import AUDIO, FRAMES, audio_bank
from helpers.prefix_states import LAYERS, asked, changed, configured, make_prefix_states, thinker
from helpers.tensors import relative_error
from rrs_jax.distributed import processes
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.generate import Prompt, SamplingConfig
from rrs_jax.inputs.batching import collate
from rrs_jax.models.audio_encoder import AudioEncoderConfig
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.qwen_audio import QwenAudio, QwenAudioConfig
from rrs_jax.models.qwen_decoder import QwenDecoderConfig
from rrs_jax.run import pipeline
from rrs_jax.run.compilation import compile_clock
from rrs_jax.run.context import RunContext, with_lora
from rrs_jax.run.evaluate_stage import evaluate_stage
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.local_engine import TUNED, VANILLA, LocalEngine
from rrs_jax.run.sweep_cache import SweepCache
from rrs_jax.weights.load import load_weights


@pytest.mark.parametrize("most, devices", [(512, 1), (10, 8)])
def test_answers_are_those_of_transformers(reference, folder, clips, monkeypatch, most, devices):
    """Before and after training, above the same prefix states, by the same functions; with whole trees, and
    with cut ones on a mesh."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    vanilla = load_weights(folder, mesh=mesh)
    bank, offsets = audio_bank(vanilla, clips)
    # A clip of one token alone is what transformers takes for a prompt of its first version.
    rows, whose = zip(*[pair for pair in zip(*asked(offsets), strict=True) if pair[1] != [3]], strict=True)
    _, prefix_states = make_prefix_states(vanilla, rows, bank, most, keys_values=True)
    attach, used = PrefixStates.attach, []
    monkeypatch.setattr(
        PrefixStates, "attach", lambda self, batch, rows: (used.append(1), attach(self, batch, rows))[1]
    )
    config = LoRAConfig(rank=3, alpha=5.0, first_layer=LAYERS)
    cache, sampling, found = SweepCache(), SamplingConfig(max_new_tokens=17, greedy=True), []
    for size in (0.0, 0.3):
        model, merged = with_lora(vanilla, config, mesh, 0), copy.deepcopy(reference)
        for index, target in enumerate(config.targets):
            pair = model.lora.pair(target)
            pair.lora_b.set_value(size * jax.random.normal(jax.random.key(index), pair.lora_b.shape))
            updates = config.scale * np.asarray(pair.lora_a[...]) @ np.asarray(pair.lora_b[...])
            for layer, update in zip(merged.model.language_model.layers[LAYERS:], updates, strict=True):
                block = layer.self_attn if target[0] in "qkvo" else layer.mlp
                getattr(block, target).weight.data += torch.tensor(update.T)
        answers = {}
        generator = cache.generator(model, sampling, EOS, 8, "auto")
        asked_for = [Prompt(key=i, row=row) for i, row in enumerate(rows)]
        generator.generate(asked_for, jnp.asarray(bank), answers.__setitem__, prefix_states)
        expected = [
            expected_answer(merged, ids, clips[own], FRAMES[own], max_new_tokens=17)
            for (ids, _, _), own in zip(rows, whose, strict=True)
        ]
        assert [answers[i] for i in range(len(rows))] == expected
        found.append((expected, generator, len(used)))
    (before, generator, prefills), (after, other, both) = found
    assert before != after and generator is other and 0 < 2 * prefills == both
    place, answers = whose.index([]), {}
    mixed = [asked_for[place], Prompt(key="other", row=(rows[place][0][:-1], [], []))]  # which is not in it
    generator.generate(mixed, jnp.asarray(bank), answers.__setitem__, prefix_states)
    assert len(used) == both and answers[place] == after[place] and "other" in answers


def compare_prefills(model, rows, length, cache_dtype=None):
    """Logits, and keys and values of all layers, from the prefix states and from the embeddings; returns the
    logits."""
    _, prefix_states = make_prefix_states(model, rows, jnp.zeros((2, 48)), keys_values=True)
    batch = jax.tree.map(jnp.asarray, collate(rows, length, AUDIO))
    started = prefix_states.attach(batch, rows).replace(
        input_ids=jnp.ones_like(batch.input_ids)
    )  # no word is looked at
    (logits, positions, store), (whole, expected, whole_store) = (
        model.prefill(one, jnp.zeros((2, 48)), cache_dtype) for one in (started, batch)
    )
    assert relative_error(logits, whole) < 1e-5 and positions.tolist() == expected.tolist()
    real = np.arange(length) < np.asarray(batch.lengths)[:, None]
    for ours, theirs in zip(jax.tree.leaves(store), jax.tree.leaves(whole_store), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        ours, theirs = (np.moveaxis(np.asarray(leaf), 3, 2)[:, real] for leaf in (ours, theirs))
        assert (
            np.abs(ours.astype(int) - theirs).max() <= 1
            if ours.dtype == np.int8
            else relative_error(ours, theirs) < 1e-5
        )
    return logits


def test_three_rotary_positions(tmp_path):
    """Qwen2.5-Omni's; and a cache of 8 bit, for which the kept keys and values are rounded."""
    reference, model, rows = thinker(tmp_path, ((1, 6), (1, 3), (1, 8)))
    for dtype in (None, jnp.int8):
        logits = compare_prefills(model, rows, 20, dtype)
    for (ids, _, _), ours in zip(rows, logits, strict=True):
        with torch.no_grad():
            assert relative_error(ours, reference(input_ids=torch.tensor([ids])).logits[0, -1]) < 1e-4
    with pytest.raises(ValueError, match="starts at layer 2 has no keys and values"):
        model.prefill(
            make_prefix_states(model, rows, jnp.zeros((2, 48)))[1].attach(collate(rows, 20, AUDIO), rows),
            jnp.zeros((2, 48)),
        )
    model.lora = nnx.data(with_lora(model, LoRAConfig(rank=2, first_layer=1), make_mesh(), 0).lora)
    with pytest.raises(ValueError, match="starts at layer 2 leaves out layers from 1 on"):
        compare_prefills(model, rows, 20)


def test_angles_of_the_prompts_length():
    """The first Qwen's, for prompts below and beyond the trained length."""
    text = QwenDecoderConfig(
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=12,
        vocab_size=136,
        rms_norm_eps=1e-6,
        rope_theta=1000.0,
        tie_word_embeddings=False,
        seq_length=16,
        use_dynamic_ntk=True,
        use_logn_attn=True,
    )
    model = QwenAudio(
        QwenAudioConfig(AudioEncoderConfig(24, 1, 3, 40, 12, 1500), text, (131, 130, 132)), dtype=jnp.float32
    )
    rng = np.random.default_rng(4)
    for _, leaf in nnx.to_flat_state(nnx.state(model)):
        leaf.set_value(jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32))
    ids = rng.integers(3, 120, 60).tolist()
    compare_prefills(model, [(ids[:length], [1], [0]) for length in (14, 15, 20, 30, 31, 50)], 56)


def evaluated(evaluations, run) -> tuple[dict, list]:
    """The answers of both models in `run()`; and of each call, who was asked, what was compiled and whether
    above prefix states."""
    calls, clock, answer = [], compile_clock(), LocalEngine._answer

    def counted(self, which, *rest, **own):
        before = clock.programs
        answer(self, which, *rest, **own)
        calls.append((which, clock.programs - before, self.prefix_states is not None))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalEngine, "_answer", counted)
        run()
    answers = {
        name: {
            (row["id"], row["mode"]): row["response"]
            for row in read_jsonl(evaluations / name / "responses.jsonl")
        }
        for name in ("vanilla", "rrs")
    }
    return answers, calls


def test_a_runs_answers_with_and_without(whole_folder, sound_files, tmp_path):
    """The second model compiles nothing, and what made the vanilla model's answers has no adapter."""
    fields = {
        "generate.greedy": True,
        "generate.max_new_tokens": 6,
        "evaluate.samples": 1,
        "evaluate.judges": ("phrases",),
    }
    config = configured(whole_folder, sound_files, tmp_path, **fields)
    folder = RunFolder(config.run_dir, config)
    answers, calls = evaluated(
        folder.evaluations, lambda: pipeline.run(config, ("data", "extract", "train", "evaluate"))
    )
    assert read_json(folder.evaluations / "vanilla" / "responses.meta.json")["made_by"]["adapter"] is None
    folder.evaluations.rename(tmp_path / "before")
    context = RunContext(changed(config, train__lower_states_gib=0.0), folder)
    plain, plain_calls = evaluated(folder.evaluations, lambda: evaluate_stage(context, pipeline.serve))
    assert answers == plain and answers["vanilla"] != answers["rrs"] and len(answers["rrs"]) == 3 * 3 + 3
    for made, kept in ((calls, True), (plain_calls, False)):
        assert [(which, prefix_states) for which, _, prefix_states in made] == [
            (VANILLA, kept),
            (TUNED, kept),
        ]
        assert made[0][1] > made[1][1] == 0


def test_which_runs_keep_prefix_states(whole_folder, sound_files, tmp_path, monkeypatch):
    config = configured(whole_folder, sound_files, tmp_path)
    folder = RunFolder(config.run_dir, config)

    def layers(cache=None, **fields):
        return LocalEngine(RunContext(changed(config, **fields), folder, cache), pipeline.serve).shared_layers

    assert [
        layers(strategy=strategy) for strategy in ("rrs", "rrs_plus", "sft_full", "rerouting", "harc")
    ] == [LAYERS] * 5
    assert not any(
        layers(strategy=strategy)
        for strategy in ("vanilla", "steering", "steering_conditional", "system_prompt")
    )
    for fields in (
        {"train__lower_states_gib": 0.0},
        {"lora__layers": "all"},
        {"lora__layers": 0},
        {"evaluate__vanilla": False},
    ):
        assert layers(**fields) == 0
    assert layers(SweepCache(tmp_path / "sweep")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(processes, "this_process", dataclasses.replace(processes.this_process, count=2))
        assert layers() == 0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers() == 0
