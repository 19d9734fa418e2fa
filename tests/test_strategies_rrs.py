"""Loss, penalty and every LoRA gradient against transformers + PEFT in float64 with dense weight matrices."""

import numpy as np
import pytest
import torch

from helpers.clip_prompts import prompts
from helpers.dense_step import HARMFUL, compare
from rrs_jax import equations
from rrs_jax.strategies.rrs import RRS


def squared_distances(rows, targets, reduction: str):
    def row_losses(hidden, _):
        last = torch.stack([hidden[r, len(row) - 1] for r, row in enumerate(rows)])
        squares = (last - torch.tensor(targets, dtype=torch.float64)) ** 2
        return squares.sum(1) if reduction == "sum" else squares.mean(1)

    return row_losses


@pytest.mark.parametrize(
    "reduction, space, parts, remat, unroll",
    [
        ("sum", "weights", 1, "none", False),
        ("mean", "lora", 2, "dots", True),
        ("mean", "weights", 2, "full", True),
        ("sum", "weights", 2, "lean", False),
        ("sum", "lora", 1, "dots", False),
    ],
)
def test_loss_penalty_and_gradients(
    reference, folder, clips, monkeypatch, reduction, space, parts, remat, unroll
):
    """Equation 12's targets, as a strategy is given them."""
    rows, row_clips = prompts(np.random.default_rng(5))
    rng = np.random.default_rng(6)
    delta = rng.normal(size=48).astype(np.float32)
    original = rng.normal(size=(4, 48)).astype(np.float32)
    targets = equations.targets(original, HARMFUL, delta)
    for row in range(4):  # equation 12
        np.testing.assert_allclose(
            targets[row], original[row] + delta if HARMFUL[row] else original[row] - delta
        )
    expected = squared_distances(rows, targets, reduction)
    compare(
        RRS(targets, reduction),
        expected,
        rows,
        row_clips,
        reference,
        folder,
        clips,
        monkeypatch,
        space=space,
        parts=parts,
        remat=remat,
        unroll=unroll,
    )
