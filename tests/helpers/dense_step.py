"""A training step's losses and gradients as one would write them down, in float64 with dense matrices."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch

from helpers.clip_prompts import audio_bank, make_batch, torch_inputs
from helpers.tensors import relative_error
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep
from rrs_jax.weights.load import load_weights

RANK, ALPHA, FIRST_LAYER, LAYERS = 3, 7.0, 1, 3
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
HARMFUL = np.array([True, False, True, False])
PROMPTS = np.array([1, 0, 2, 1])  # of the pool, that the rows drew
WEIGHTS = np.array([1, 1, 1, 0], np.float32)  # the last row fills up a short batch
STRENGTH = 0.7


def adapters(model) -> dict:
    """(target, "A" or "B", layer) to the array as torch lays it out, (out, in)."""
    return {
        (target, name[-1].upper(), layer): (
            np.asarray(getattr(model.lora.pair(target), name)[...])[layer - FIRST_LAYER].T
        )
        for target in TARGETS
        for name in ("lora_a", "lora_b")
        for layer in range(FIRST_LAYER, LAYERS)
    }


def dense(reference, start: dict, now: dict, rows, clips, row_losses_of, space: str):
    """Row losses, penalty, loss and gradients as one would write them down, float64.

    row_losses_of(hidden states (B, T, D), head (V, D)) gives the strategy's row losses.
    """
    full = copy.deepcopy(reference).double()
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(TARGETS),
        layers_pattern="layers",
        layers_to_transform=list(range(FIRST_LAYER, LAYERS)),
    )
    full.model.language_model = peft.get_peft_model(full.model.language_model, config)
    parameters = {}
    for name, parameter in full.named_parameters():
        if "lora_" in name:
            before, after = name.split(".lora_")
            key = before.split(".")[-1], after[0], int(before.split(".layers.")[1].split(".")[0])
            parameter.data = torch.tensor(now[key], dtype=torch.float64)
            parameters[key] = parameter
    assert parameters.keys() == now.keys()

    inputs = torch_inputs(rows, clips, "right")
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    hidden = full(**inputs, output_hidden_states=True).hidden_states[-1]
    row_losses = row_losses_of(hidden, full.lm_head.weight)
    if space == "lora":
        moved = sum(
            ((p - torch.tensor(start[key], dtype=torch.float64)) ** 2).sum() for key, p in parameters.items()
        )
    else:
        pairs = [
            (parameters[t, "B", i], parameters[t, "A", i])
            for t in TARGETS
            for i in range(FIRST_LAYER, LAYERS)
        ]
        moved = sum(((ALPHA / RANK * b @ a) ** 2).sum() for b, a in pairs)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    loss = (row_losses * weights).sum() / weights.sum() + STRENGTH * moved
    loss.backward()
    return (
        row_losses.detach().numpy(),
        moved.item(),
        loss.item(),
        {key: p.grad.numpy() for key, p in parameters.items()},
    )


def micro_batches(step, strategy, batch, parts: int) -> list[Rows]:
    """The four rows in one batch, or in two of which the second is cut to its own length."""
    pieces = []
    for indices in np.split(np.arange(4), parts):
        length = int(batch.lengths[indices].max())
        own = jax.tree.map(lambda x, indices=indices: np.asarray(x)[indices], batch)
        own = own.replace(input_ids=own.input_ids[:, :length], audio_index=own.audio_index[:, :length])
        examples = strategy.examples(indices, PROMPTS[indices], np.zeros(len(indices), np.int64))
        pieces.append(step.place(Rows(own, examples, HARMFUL[indices], WEIGHTS[indices])))
    return pieces


def compare(
    strategy,
    row_losses_of,
    rows,
    row_clips,
    reference,
    folder,
    clips,
    monkeypatch,
    space="weights",
    parts=1,
    remat="dots",
    unroll=False,
):
    """A step's losses, penalty and gradients with those of `dense`. With plain gradient descent of rate 1 the
    step's own update is the gradient."""
    sgd = optax.masked(optax.sgd(1.0), {"base": False, "lora": True})
    monkeypatch.setattr("rrs_jax.train.step.make_optimiser", lambda *_: sgd)
    mesh = make_mesh(devices=jax.devices()[:1])
    lora = LoRAConfig(RANK, ALPHA, TARGETS, FIRST_LAYER)
    model = load_weights(folder, lora=lora, mesh=mesh, seed=1)
    bank, offsets = audio_bank(model, clips)
    batch = make_batch(rows, row_clips, offsets)
    rng = np.random.default_rng(7)

    config = OptimiserConfig(penalty_weight=STRENGTH, penalty_space=space, remat=remat, unroll=unroll)
    step = TrainStep(model, strategy, config, mesh, 1)
    state, start = step.init(), adapters(model)
    # B too is moved away from zero, or half of the gradients and the penalty would vanish.
    moved = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.1, "float32"), state.lora)
    state = state.replace(lora=moved)
    now = adapters(step.model(state))
    state, metrics, row_losses = step(state, jnp.asarray(bank), micro_batches(step, strategy, batch, parts))
    after = adapters(step.model(state))

    losses, penalty, loss, gradients = dense(reference, start, now, rows, clips, row_losses_of, space)
    assert relative_error(np.concatenate(row_losses), losses) < 1e-4
    assert float(metrics.penalty) == pytest.approx(penalty, rel=1e-4)
    assert float(metrics.loss) == pytest.approx(loss, rel=1e-4)
    for key, gradient in gradients.items():
        assert relative_error(now[key] - after[key], gradient) < 1e-4, key
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-4)
    np.testing.assert_allclose(metrics.losses, [losses[0] + losses[2], losses[1]], rtol=1e-4)
    np.testing.assert_array_equal(metrics.weights, [2, 1])
