"""What is made of logits, a few positions at a time, against torch on all of them."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from helpers.tensors import relative_error
from rrs_jax.mini.bridge_losses import answer_losses
from rrs_jax.models import positions
from rrs_jax.models.positions import map_positions
from rrs_jax.strategies.sft import mean_cross_entropy

ROWS, COUNT, WIDTH, WORDS = 3, 5, 8, 40
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], np.float32)


@pytest.fixture(params=[1, 6, 256])
def tokens(request, monkeypatch):
    """One position of a row at once, two with one left over, and all."""
    monkeypatch.setattr(positions, "TOKENS", request.param)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs():
    """Returns a model that has nothing but a head, its matrix, states that hear and read, and token ids."""
    head = draw(0, WORDS, WIDTH)
    model = SimpleNamespace(logits=lambda states: states @ head.T)
    ids = np.random.default_rng(3).integers(WORDS, size=(ROWS, COUNT)).astype(np.int32)
    return model, head, draw(1, ROWS, COUNT, WIDTH), draw(2, ROWS, COUNT, WIDTH), ids


def test_cross_entropy_and_divergence_over_answers_of_unequal_length_and_none(tokens):
    model, head, heard, read, ids = inputs()

    def total(heard):
        each = map_positions(functools.partial(answer_losses, model), ids, heard, jnp.asarray(read))
        sums = {name: (value * MASK).sum() / MASK.sum() for name, value in each.items()}
        return sums["cross_entropy"] + sums["divergence"], sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(heard))

    states = torch.tensor(heard, dtype=torch.float64, requires_grad=True)
    matrix, chosen = torch.tensor(head, dtype=torch.float64), torch.tensor(MASK) > 0
    student = torch.log_softmax(states @ matrix.T, -1)[chosen]
    teacher = torch.softmax(torch.tensor(read, dtype=torch.float64) @ matrix.T, -1)[chosen]
    targets = torch.tensor(ids)[chosen].long()
    cross_entropy = torch.nn.functional.nll_loss(student, targets)
    divergence = torch.nn.functional.kl_div(student, teacher, reduction="batchmean")
    (cross_entropy + divergence).backward()
    expected = {
        "cross_entropy": cross_entropy.item(),
        "divergence": divergence.item(),
        "agreement": (student.argmax(-1) == targets).double().mean().item(),
    }
    assert {name: float(sum) for name, sum in sums.items()} == pytest.approx(expected, rel=1e-5)
    assert float(value) == pytest.approx((cross_entropy + divergence).item(), rel=1e-5)
    assert relative_error(gradient, states.grad.numpy()) < 1e-5
    assert not np.asarray(gradient)[MASK == 0].any()


def test_mean_cross_entropy_of_each_sample(tokens):
    model, head, states, _, ids = inputs()
    ids = np.where(MASK + np.eye(ROWS, COUNT)[::-1] > 0, ids, -1).astype(np.int32)  # no sample without any

    def total(states):
        losses = mean_cross_entropy(model, states, jnp.asarray(ids))
        return losses @ jnp.arange(1.0, ROWS + 1), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(states))

    plain = torch.tensor(states, dtype=torch.float64, requires_grad=True)
    logits = plain @ torch.tensor(head, dtype=torch.float64).T
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(row, torch.tensor(own).long(), ignore_index=-1)
            for row, own in zip(logits, ids, strict=True)
        ]
    )
    (expected * torch.arange(1, ROWS + 1)).sum().backward()
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-5)
    assert relative_error(gradient, plain.grad.numpy()) < 1e-5
