"""The linear probe against least squares, and its cross-validation."""

import numpy as np
import pytest

from rrs_jax.frozen.probe import fit_probe, probe_accuracy, probe_scores


@pytest.mark.parametrize("features", [5, 150])
def test_probe(features):
    """Ridge regression of ±1 with classes of equal weight, written as a weighted least-squares problem."""
    rng = np.random.default_rng(0)
    harmful, benign = rng.normal(size=(30, features)), rng.normal(size=(70, features))
    harmful[:, 0] += 1
    inputs, signs = np.concatenate([harmful, benign]), np.repeat([1.0, -1.0], [30, 70])
    weights, bias = fit_probe(inputs, signs)
    middle = (harmful.mean(0) + benign.mean(0)) / 2
    importance = np.where(signs > 0, 0.5 / 30, 0.5 / 70)
    centred = inputs - middle
    ridge = 0.1 * np.trace((centred * importance[:, None]).T @ centred) / features
    stacked = np.concatenate([centred * np.sqrt(importance)[:, None], np.sqrt(ridge) * np.eye(features)])
    expected, *_ = np.linalg.lstsq(
        stacked, np.concatenate([signs * np.sqrt(importance), np.zeros(features)]), rcond=None
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert bias == pytest.approx(-middle @ expected)
    pairs = [f"p{i}" for i in range(30)] * 2 + [f"q{i}" for i in range(40)]
    if features == 5:
        assert 0.55 < probe_accuracy(inputs, signs, pairs) < 0.9
    noise = rng.normal(size=(100, features))
    assert abs(probe_accuracy(noise, signs, pairs) - 0.5) < 0.15
    far = inputs + 20 * (signs > 0)[:, None]
    assert probe_accuracy(far, signs, pairs) == 1.0


def test_probe_scores_come_from_probes_that_never_saw_the_group():
    """Every group has a feature of its own that gives its sign away: only a probe fitted with it is right."""
    groups = np.repeat(np.arange(20), 2)
    signs = np.tile([1.0, -1.0], 20)
    inputs = np.zeros((40, 20))
    inputs[np.arange(40), groups] = 10 * signs
    weights, bias = fit_probe(inputs, signs)
    assert np.all((inputs @ weights + bias) * signs > 0)
    np.testing.assert_allclose(probe_scores(inputs, signs, groups), 0, atol=1e-9)
    assert np.isnan(probe_scores(inputs, signs, ["one"] * 40)).all()
