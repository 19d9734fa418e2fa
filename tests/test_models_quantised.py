"""Frozen matrices in 8 bit: the numbers are those of torch with rounded weights, training and export stay
exact."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from helpers.clip_prompts import audio_bank, make_batch, prompts, torch_inputs
from helpers.quantised import load
from helpers.tensors import relative_error
from helpers.train_step import LAYERS, compiled_step
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep
from rrs_jax.weights.export import export_merged
from rrs_jax.weights.load import load_weights


@pytest.fixture(scope="module")
def rounded(reference):
    """The torch model with each decoder matrix rounded to 127 steps of each row's largest magnitude."""
    model = copy.deepcopy(reference)
    for name, module in model.model.language_model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.detach().double()
            step = weight.abs().max(dim=1, keepdim=True).values / 127
            module.weight = torch.nn.Parameter((torch.round(weight / step) * step).float())
            assert not torch.equal(
                module.weight, reference.model.language_model.layers.get_submodule(name).weight
            )
    return model


def test_states_are_those_of_rounded_weights(reference, rounded, folder, clips):
    rows, row_clips = prompts(np.random.default_rng(1))
    inputs = torch_inputs(rows, clips, "right")
    mask = inputs["attention_mask"].numpy().astype(bool)
    with torch.no_grad():
        expected, plain = (
            m(**inputs, output_hidden_states=True).hidden_states[-1] for m in (rounded, reference)
        )
    model = load(folder, "int8", lora=None)
    bank, offsets = audio_bank(model, clips)
    ours = np.asarray(model.hidden_states(make_batch(rows, row_clips, offsets), bank))
    ours = ours[np.arange(ours.shape[1])[None] < np.array([[len(row)] for row in rows])]
    assert relative_error(ours, expected.numpy()[mask]) < 1e-4
    # What rounding costs; a width of 48 averages over less than one of 4096.
    assert 1e-3 < relative_error(ours, plain.numpy()[mask]) < 2e-2


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_gradients_are_those_of_rounded_weights(rounded, folder, tmp_path, clips, remat):
    rounded.save_pretrained(tmp_path)
    rows, row_clips = prompts(np.random.default_rng(2))
    strategy = RRS(np.random.default_rng(3).normal(size=(4, 48)).astype(np.float32))
    sums = []
    for model in (load(folder, "int8"), load(tmp_path, "none")):
        step = TrainStep(
            model, strategy, OptimiserConfig(remat=remat), make_mesh(devices=jax.devices()[:1]), 1
        )
        bank, offsets = audio_bank(model, clips)
        batch = make_batch(rows, row_clips, offsets)
        placed = step.place(
            Rows(batch, strategy.examples(np.arange(4)), np.arange(4) < 2, np.ones(4, np.float32))
        )
        draw = step.seed, 0
        sums.append(step._first(step.init().lora, step.base, draw, jnp.asarray(bank), placed)[0])
    for ours, theirs in zip(*map(jax.tree.leaves, sums), strict=True):
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize("quantize", ["int8", "float8"])
def test_no_layer_is_kept_in_more_than_8_bit(remat, quantize):
    """Kept for the backward pass, the matrices turned back would be four times the weights."""
    sizes = []
    for kept in ("none", quantize):
        step, compiled = compiled_step(remat, quantize=kept)
        weights = sum(x.nbytes for x in jax.tree.leaves(step.base["language_model"]["layers"]))
        sizes.append((weights, compiled.memory_analysis().temp_size_in_bytes))
    (plain, plain_temporary), (small, temporary) = sizes
    assert small < 0.26 * plain
    # XLA's CPU, which has no arithmetic of such numbers, widens stacks of float8 to 16 bit.
    room = plain / LAYERS + (plain / 2 if quantize == "float8" else 0)
    assert temporary < plain_temporary + room


def test_the_merged_folder_is_that_of_the_original_tensors(folder, tmp_path):
    merged = []
    for quantize in ("int8", "float8", "none"):
        export_merged(load(folder, quantize), folder, tmp_path / quantize)
        merged.append({path.name: path.read_bytes() for path in (tmp_path / quantize).glob("*.safetensors")})
    assert merged[0] == merged[1] == merged[2] and merged[0]


@pytest.mark.parametrize(
    "quantize, name, shard", [("int8", "kernel", (3, 24, 36)), ("float8", "weight", (3, 18, 48))]
)
def test_a_mesh_cuts_the_steps_and_not_the_scales(folder, quantize, name, shard):
    model = load_weights(folder, mesh=make_mesh(data=2, fsdp=2, tensor=2), quantize=quantize)
    one = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]), quantize=quantize)
    cut, whole = model.language_model.layers.up_proj, one.language_model.layers.up_proj
    steps = getattr(cut, name)[...]
    assert steps.dtype.itemsize == 1 and steps.addressable_shards[0].data.shape == shard
    np.testing.assert_array_equal(steps.astype(np.float32), getattr(whole, name)[...].astype(np.float32))
    np.testing.assert_array_equal(cut.scale[...], whole.scale[...])
