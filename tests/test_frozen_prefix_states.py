"""The lower layers' states against transformers and the step that computes them itself, and runs with and
without them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.clip_prompts import AUDIO, audio_bank, torch_inputs
from helpers.prefix_states import COUNTS, LAYERS, asked, changed, configured, make_prefix_states, thinker
from helpers.tensors import relative_error
from rrs_jax.config.prompts import KEPT_TEXTS
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.frozen.extraction import extract_all
from rrs_jax.frozen.prefix_states import PrefixStates, states_bytes
from rrs_jax.frozen.prefix_trees import collate_trees, make_trees, shared_prefix_length
from rrs_jax.inputs.batching import bucket_lengths, collate
from rrs_jax.models.decoder_pass import DecoderInputs, TreeLayout, Wanted
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.models.qwen_decoder import QwenDecoder, QwenDecoderConfig
from rrs_jax.run import pipeline
from rrs_jax.run.context import RunContext
from rrs_jax.run.folder import RunFolder
from rrs_jax.run.training_set import TrainingSet
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep
from rrs_jax.weights.load import load_weights


def by_transformers(reference, rows, clips) -> list[np.ndarray]:
    """Returns for each row the states behind each layer, one row at a time; the last ones are normed."""
    found = []
    for ids, _, counts in rows:
        own = [COUNTS.index(count) for count in counts]
        inputs = torch_inputs([ids], clips, "right")
        inputs["input_features"], inputs["feature_attention_mask"] = (
            inputs[name][own] for name in ("input_features", "feature_attention_mask")
        )
        if not own:
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            found.append(
                [state[0].numpy() for state in reference(**inputs, output_hidden_states=True).hidden_states]
            )
    return found


@pytest.mark.parametrize("most", [512, 10])
def test_states_and_representations_are_those_of_transformers(reference, folder, clips, most):
    """Whole trees and cut ones, on a mesh of eight."""
    model = load_weights(folder, mesh=make_mesh(2, 2, 2))
    bank, offsets = audio_bank(model, clips)
    rows, _ = asked(offsets)
    trees, prefix_states = make_prefix_states(model, rows, bank, most)
    # The rows of one clip together, the two in writing each alone; cut where ends of more than ten tokens
    # come together.
    assert [len(tree.rows) for tree in trees] == (
        [3, 4, 1, 1, 1] if most == 512 else [2, 1, 1, 1, 2, 1, 1, 1]
    )
    assert all(row in prefix_states for row in rows) and (rows[0][0][:-1], *rows[0][1:]) not in prefix_states
    assert trees[1].prefix == 5 + 2 + COUNTS[2] or most == 10
    assert (
        shared_prefix_length(model, trees) == 5 and shared_prefix_length(model, trees[:1]) == 0
    )  # the system prompt, and none of one
    expected = by_transformers(reference, rows, clips)
    states, _ = prefix_states.states(rows, 80)
    assert states.dtype == np.float32
    for ours, theirs in zip(states, expected, strict=True):
        assert (
            relative_error(ours[: len(theirs[LAYERS])], theirs[LAYERS]) < 1e-4
            and not ours[len(theirs[LAYERS]) :].any()
        )
    lengths = [len(ids) for ids, _, _ in rows]
    reps = extract_all(
        model, rows, bank, batch_size=4, buckets=bucket_lengths(lengths, 2), attach=prefix_states.attach
    )
    assert relative_error(reps, np.stack([row[-1][-1] for row in expected])) < 1e-4


def test_three_rotary_positions(tmp_path):
    reference, model, rows = thinker(tmp_path, ((1, 6), (1, 3), (0, 8)))
    trees, prefix_states = make_prefix_states(model, rows, jnp.zeros((2, 48)))
    assert [len(tree.rows) for tree in trees] == [2, 1] and shared_prefix_length(model, trees) == 9
    for (ids, _, _), ours in zip(rows, prefix_states.states(rows, 20)[0], strict=True):
        with torch.no_grad():
            theirs = reference(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[
                LAYERS
            ][0]
        assert relative_error(ours[: len(ids)], theirs) < 1e-4


def test_prompts_beyond_the_trained_length_have_trees_of_their_own():
    """The first Qwen's angles depend on the prompt's length: 16 tokens here, then twice as many, and so
    on."""
    config = QwenDecoderConfig(
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
    decoder = QwenDecoder(config, dtype=jnp.float32)
    rng = np.random.default_rng(4)
    for _, leaf in nnx.to_flat_state(nnx.state(decoder)):
        leaf.set_value(jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32))
    ids = rng.integers(3, 120, 60).tolist()
    rows = [(ids[:length], [1], [0]) for length in (14, 15, 20, 30, 31, 50)]
    model = SimpleNamespace(language_model=decoder)
    trees = make_trees(model, rows)
    assert (
        shared_prefix_length(model, trees) == 0
    )  # though all prompts begin with 14 tokens: they are rotated otherwise
    assert [[len(row) for row, _, _ in tree.rows] for tree in trees] == [[14, 15], [20, 30, 31], [50]]
    batch = collate_trees(trees, 64, AUDIO)
    words = decoder.embed_tokens[...]
    layout = TreeLayout(batch.positions, batch.branches)
    inputs = DecoderInputs(words[batch.input_ids], batch.lengths, tree=layout)
    states = decoder(inputs, None, Wanted(stop=LAYERS)).states
    for tree, ours in zip(trees, states, strict=True):
        start = tree.prefix
        for row, _, _ in tree.rows:
            end = start + len(row) - tree.prefix
            found = jnp.concatenate([ours[: tree.prefix], ours[start:end]])
            alone = DecoderInputs(words[jnp.asarray([row])], jnp.array([len(row)]))
            assert relative_error(found, decoder(alone, None, Wanted(stop=LAYERS)).states[0]) < 1e-5
            start = end


def test_losses_and_gradients_are_those_of_the_whole_step(folder, clips):
    model = load_weights(
        folder, lora=LoRAConfig(rank=2, first_layer=LAYERS), mesh=make_mesh(devices=jax.devices()[:1])
    )
    vanilla = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))
    bank, offsets = audio_bank(vanilla, clips)
    rows, _ = asked(offsets)
    _, prefix_states = make_prefix_states(vanilla, rows, bank)
    rng = np.random.default_rng(1)
    for target in model.lora.config.targets:  # as in the midst of a training: B at zero has no gradient for A
        pair = model.lora.pair(target)
        pair.lora_b.set_value(jnp.asarray(rng.normal(size=pair.lora_b.shape) * 0.1, jnp.float32))
    size = len(rows)
    strategy = RRS(rng.normal(size=(size, 48)).astype(np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(), make_mesh(devices=jax.devices()[:1]), 1)
    batch = collate(rows, 72, AUDIO)
    harmful, weights = np.arange(size) % 2 == 0, np.ones(size, np.float32)
    found = []
    for one in (batch, prefix_states.attach(batch, rows)):
        placed = step.place(Rows(one, strategy.examples(np.arange(size)), harmful, weights))
        sums, losses = step._first(step.initial, step.base, (step.seed, 0), jnp.asarray(bank), placed)
        found.append(([np.asarray(losses)], [np.asarray(leaf) for leaf in jax.tree.leaves(sums.gradients)]))
    for whole, started in zip(*found, strict=True):
        for theirs, ours in zip(whole, started, strict=True):
            assert np.linalg.norm(theirs) > 0 and relative_error(ours, theirs) < 1e-5
    assert len(found[0][1]) == 2 * len(model.lora.config.targets)


def test_other_readings_of_the_last_layers_start_there_too(folder, clips):
    """All positions, and some; garbage in place of the tokens shows that nothing below is computed."""
    model = load_weights(folder, lora=LoRAConfig(rank=2, first_layer=LAYERS))
    bank, offsets = audio_bank(model, clips)
    rows, _ = asked(offsets)
    _, prefix_states = make_prefix_states(model, rows, bank)
    batch = collate(rows, 72, AUDIO)
    started = prefix_states.attach(batch, rows).replace(input_ids=np.ones_like(batch.input_ids))
    real = np.arange(72) < batch.lengths[:, None]
    assert (
        relative_error(model.hidden_states(started, bank)[real], model.hidden_states(batch, bank)[real])
        < 1e-5
    )
    at = np.stack([batch.lengths - 2, batch.lengths - 1], axis=1)
    assert relative_error(model.states_at(started, bank, at), model.states_at(batch, bank, at)) < 1e-5
    above = load_weights(folder, lora=LoRAConfig(rank=2, first_layer=1))
    with pytest.raises(ValueError, match="starts at layer 2 leaves out layers from 1 on"):
        above.representations(started, bank)


def adapters(config) -> list[np.ndarray]:
    context = RunContext(config, RunFolder(config.run_dir, config))
    model = context.restore_adapters()
    assert not context.prefix_states  # only the checkpoint is read
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, LoRAParam))]


def counting(compute, calls: list):
    """`compute`, which adds to `calls` each time."""
    return lambda self, *rest: (calls.append(1), compute(self, *rest))


@pytest.fixture(scope="module")
def finished(whole_folder, sound_files, tmp_path_factory):
    """Two runs, with and without; also how often prefix states were made in each."""
    runs = []
    for gib in (4.0, 0.0):
        made, path = [], tmp_path_factory.mktemp("prefix_states")
        config = configured(whole_folder, sound_files, path, **{"train.lower_states_gib": gib})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PrefixStates, "_compute", counting(PrefixStates._compute, made))
            pipeline.run(config, ("data", "extract", "train"))
        runs.append((config, path / "run", len(made)))
    return runs


def test_a_run_ends_with_the_same_adapters(finished):
    (config, path, made), (plain, plain_path, none) = finished
    assert made == 1 and none == 0  # extraction's serves training
    for ours, theirs in zip(adapters(config), adapters(plain), strict=True):
        assert relative_error(ours, theirs) < 1e-4
    losses = [[row["loss"] for row in read_jsonl(run / "metrics.jsonl")] for run in (path, plain_path)]
    assert len(losses[0]) == 6 and np.allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("killed_after", [0, 2])
def test_a_killed_run_goes_on_bit_for_bit(
    finished, whole_folder, sound_files, tmp_path, monkeypatch, killed_after
):
    """The run is killed behind extraction, and in training: the other process makes the states anew."""
    config = configured(whole_folder, sound_files, tmp_path)
    whole = pipeline.keep_adapter

    def killed(session, epoch, lora):
        whole(session, epoch, lora)
        if epoch == killed_after:
            raise KeyboardInterrupt

    if killed_after:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "keep_adapter", killed)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(config, ("data", "extract", "train"))
    else:
        pipeline.run(config, ("data", "extract"))
    pipeline.run(config, ("data", "extract", "train"))
    assert (
        read_json(tmp_path / "run" / ".done" / "train.json")["adapter"]
        == (read_json(finished[0][1] / ".done" / "train.json")["adapter"])
    )
    losses = [
        [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
        for run in (tmp_path / "run", finished[0][1])
    ]
    assert losses[0] == losses[1]


def training_set_of(config, cache=None) -> TrainingSet:
    return RunContext(config, RunFolder(config.run_dir, config), cache).training_set()


def test_which_runs_keep_no_prefix_states(finished, capsys):
    config, _, _ = finished[0]
    training_set = training_set_of(config)
    made = training_set.prefix_states()
    assert made is not None and made is TrainingSet(training_set.context).prefix_states()
    model, frozen = training_set.frozen.model, training_set.frozen
    for sample in range(len(training_set.samples)):  # what the written questions are to keep
        assert all(frozen.written_prompt(sample, text) in made for text in KEPT_TEXTS)
    trees = make_trees(model, training_set._extracted_and_drawn())
    held = sum(tree.length for tree in trees) * 48 * 4
    assert states_bytes(model, trees) == held

    def prefix_states_of(**fields):
        context = RunContext(
            changed(config, **fields), training_set.context.folder, training_set.context.cache
        )
        found = context.training_set().prefix_states()
        return found, capsys.readouterr().err.count("train.lower_states_gib")

    for fields in (
        {"train__lower_states_gib": 0.0},
        {"lora__layers": "all"},
        {"lora__layers": 0},
        {"strategy": "sft_full"},
        {"strategy": "rerouting"},
        {"strategy": "harc"},
        {"strategy": "vanilla"},
        {"rrs__positions": 2},
    ):
        assert prefix_states_of(**fields) == (None, 0)
    assert prefix_states_of(train__lower_states_gib=0.99 * held / 2**30) == (None, 1)
    found, told = prefix_states_of(train__lower_states_gib=1.01 * held / 2**30)
    assert found is not None and not told


def test_a_first_layer_above_the_last_is_a_sentence(finished):
    config, path, _ = finished[0]
    context = RunContext(changed(config, lora__layers=3), RunFolder(path, config))
    with pytest.raises(UserError, match="lora.layers: 3 leaves no layer"):
        context.training_set().prefix_states()
