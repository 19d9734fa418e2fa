"""Eight devices against one; what the compiled step keeps in memory and computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.train_step import LAYERS, LENGTH, ROWS, compiled_step, random_rows
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, TrainStep
from rrs_jax.weights.load import load_weights


def losses_over_ten_steps(folder, mesh, dropout: float) -> tuple[list[float], TrainStep]:
    model = load_weights(folder, lora=LoRAConfig(rank=4, dropout=dropout), mesh=mesh)
    rng = np.random.default_rng(0)
    strategy = RRS(rng.normal(size=(8, 48)).astype(np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(learning_rate=1e-3, clip_norm=1.0), mesh, 10)
    state = step.init()
    bank = jax.device_put(rng.normal(size=(9, 48)).astype(np.float32), step.replicated)
    losses = []
    for _ in range(10):
        rows = [step.place(random_rows(rng, strategy, 8, 16, 120))]
        with jax.transfer_guard("disallow"):  # all that a step needs is on the devices
            state, metrics, _ = step(state, bank, rows)
        losses.append(float(metrics.loss))
    return losses, step


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_eight_devices_give_the_losses_of_one(folder, dropout):
    """`data` 2 × `fsdp` 2 × `tensor` 2, each of which really cuts something; dropout has the same masks."""
    ours, step = losses_over_ten_steps(folder, make_mesh(2, 2, 2), dropout)
    expected, _ = losses_over_ten_steps(folder, make_mesh(devices=jax.devices()[:1]), dropout)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert ours[-1] < 0.98 * ours[0]
    kernel = step.base["language_model"]["layers"]["q_proj"]["kernel"].get_value()
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 24, 24)
    assert step.compilations() == 1


def in_forward_passes(step: TrainStep, compiled) -> float:
    """FLOPs in units of 2·N·tokens of one layer, of which XLA counts a scan's body once."""
    layer = sum(x.size for x in jax.tree.leaves(step.base["language_model"]["layers"])) / LAYERS
    return compiled.cost_analysis()["flops"] / (2 * layer * ROWS * LENGTH)


@pytest.mark.parametrize(
    "remat, forward_passes", [("none", 2), ("dots", 2), ("gate", 2.3), ("lean", 2.6), ("full", 3)]
)
def test_frozen_weights_have_no_copy_and_no_gradient(remat, forward_passes):
    """Saved slices of the layers' stack, gradients or moments would each be as large as the weights; what the
    backward pass really needs is half as large here."""
    step, compiled = compiled_step(remat)
    layers = sum(x.nbytes for x in jax.tree.leaves(step.base["language_model"]["layers"]))
    memory = compiled.memory_analysis()
    state = sum(x.nbytes for x in jax.tree.leaves(step.init()))
    assert memory.temp_size_in_bytes < 0.6 * layers
    assert memory.output_size_in_bytes < 1.05 * state + 4096 and memory.alias_size_in_bytes >= state
    # Scanned layers: forward, backward to the activations and, with `full`, forward once more,
    # of which gate and up are 0.55, all that `lean` computes again; `gate` half of it. The last
    # layer adds keys and values of all positions, and every layer its adapters: together below 0.6.
    flops = in_forward_passes(step, compiled)
    assert forward_passes < flops < forward_passes + 0.6
    weights = {x.shape for x in jax.tree.leaves(step.base["language_model"]["layers"])}
    assert not weights & {x.shape for x in jax.tree.leaves(step.init())}


def test_layers_below_the_first_adapter_have_no_backward_pass():
    step, whole = compiled_step("none")
    step, half = compiled_step("none", first_layer=4)
    assert half.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes
    # A scan of its own, whose body is one forward pass.
    assert in_forward_passes(step, half) - in_forward_passes(step, whole) == pytest.approx(1.0, abs=0.1)
    _, last = compiled_step("none", first_layer=LAYERS - 1)
    assert in_forward_passes(step, last) < 1.5


def test_a_step_that_is_not_finite_changes_nothing(folder):
    mesh = make_mesh(devices=jax.devices()[:1])
    model = load_weights(folder, lora=LoRAConfig(rank=2), mesh=mesh)
    rng = np.random.default_rng(0)
    strategy = RRS(np.where(np.arange(4) == 2, np.nan, 1.0)[:, None] * np.ones((4, 48), np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(), mesh, 1)
    before = jax.tree.map(np.array, step.init())
    rows = step.place(random_rows(rng, strategy, 4, 16, 120))
    state, metrics, losses = step(step.init(), jnp.zeros((9, 48)), [rows])
    assert not metrics.finite and np.isnan(losses[0]).tolist() == [False, False, True, False]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, state), before)
    jax.tree.map(np.asarray, nnx.state(model))  # the model's own adapters were not given away
