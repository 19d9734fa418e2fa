"""The paper's equations against plain formulas in NumPy and torch, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from helpers.tensors import relative_error
from rrs_jax import equations, safety_vector
from rrs_jax.errors import UserError


def in_numpy(harmful_refusal, benign, head_row, top_m):
    """Equations 9 and 10, sample by sample and feature by feature, float64."""
    h, b, w = (x.astype(np.float64) for x in (harmful_refusal, benign, head_row))
    delta = sum(h[n] - b[n] for n in range(len(h))) / len(h)
    contribution = w * delta
    if top_m == "positive":
        chosen = {p for p in range(len(w)) if contribution[p] > 0}
    else:
        chosen = set(sorted(range(len(w)), key=lambda p: -contribution[p])[: round(top_m / 100 * len(w))])
    return delta, contribution, np.array([delta[p] if p in chosen else 0.0 for p in range(len(w))])


@pytest.mark.parametrize("top_m", [51, 25, 12.5, 100, "positive"])
def test_safety_vector(top_m):
    rng = np.random.default_rng(0)
    # Large common values beside a small difference, as the final norm's outlier features have.
    common = rng.normal(size=130) * 100
    harmful = (common + rng.normal(size=(701, 130)) + 0.05).astype(np.float32)
    benign = (common + rng.normal(size=(701, 130))).astype(np.float32)
    head_row = rng.normal(size=130).astype(np.float32)
    delta, contribution, vector = in_numpy(harmful, benign, head_row, top_m)
    ours = safety_vector(harmful, benign, head_row, top_m)
    assert relative_error(ours.delta_mean, delta) < 1e-5
    assert relative_error(ours.contribution, contribution) < 1e-5
    assert relative_error(ours.vector, vector) < 1e-5
    assert ours.positive_share == pytest.approx((contribution > 0).mean())
    assert ours.delta_logit == pytest.approx(contribution.sum(), rel=1e-4)
    assert ours.delta_logit_selected == pytest.approx((head_row * vector).sum(), rel=1e-4)
    assert np.sum(ours.selected) == np.count_nonzero(vector)


@pytest.mark.parametrize("top_m", [0, -3, 101, float("nan"), "most", True, None])
def test_top_m_outside_its_range_is_refused(top_m):
    with pytest.raises(UserError, match="rrs.top_m"):
        safety_vector(np.ones((2, 4)), np.zeros((2, 4)), np.ones(4), top_m)


def test_ties_go_to_the_first_features():
    chosen = equations.select(jnp.array([1.0, 2.0, 1.0, 1.0]), 50)
    assert chosen.tolist() == [True, True, False, False]


def test_contribution_sums_to_the_change_of_the_logit():
    """Equation 4 against equation 5."""
    rng = np.random.default_rng(1)
    head, refused, benign = rng.normal(size=(3, 9)).astype(np.float32)
    change = equations.contribution(jnp.asarray(head), jnp.asarray(refused - benign)).sum()
    assert float(change) == pytest.approx(float(head @ refused - head @ benign), rel=1e-5)


def test_targets():
    """Equation 12, row by row; one vector for all, or one for each row."""
    rng = np.random.default_rng(2)
    start, harmful = rng.normal(size=(4, 6)).astype(np.float32), np.array([True, False, True, False])
    vectors = rng.normal(size=(4, 6)).astype(np.float32)
    for given in (vectors[0], vectors):
        found = equations.targets(start, harmful, given)
        for row in range(4):
            own = given if given.ndim == 1 else given[row]
            np.testing.assert_array_equal(found[row], start[row] + own if harmful[row] else start[row] - own)


def test_draws_are_of_the_pool_and_all_of_it():
    drawn = equations.draw_prompts(np.random.default_rng(0), 5000, 10)
    counts = np.bincount(drawn, minlength=10)
    assert counts.shape == (10,) and counts.min() > 400 and counts.max() < 600


AUTHORS_FEATURES = 3584
AUTHORS_LEFT_OUT = {50: 1792, 25: 2688, 12.5: 3136}  # of these features, by share kept


def authors_mask(delta: np.ndarray, row: np.ndarray, share: float, dtype) -> np.ndarray:
    """Features that the authors' program keeps, by what docs/authors.md says of it, feature by feature.

    It sorts with an algorithm that orders equal numbers at random; here the first of them is left out first.
    """
    product = (torch.tensor(row, dtype=dtype) * torch.tensor(delta, dtype=dtype)).to(torch.float16).numpy()
    kept = np.ones(len(product), bool)
    if share == 51:
        for feature, value in enumerate(product):
            if value < 0:
                kept[feature] = False
    else:
        kept[np.argsort(product, kind="stable")[: AUTHORS_LEFT_OUT[share]]] = False
    return kept


def changes(kind: str) -> np.ndarray:
    """ΔV̄: random numbers, or numbers as a model's final norm gives them: some far from all others, others 0
    or so small that float16 rounds their contribution to 0."""
    rng = np.random.default_rng(4)
    delta = rng.normal(size=AUTHORS_FEATURES) * 0.3
    if kind == "of a model":
        delta = rng.standard_t(2, AUTHORS_FEATURES) * 0.3
        delta[::40], delta[1::40] = 0, delta[1::40] * 1e-6
    return delta


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["random", "of a model"])
@pytest.mark.parametrize("share", [51, 50, 25, 12.5])
def test_the_authors_masks(share, kind, dtype):
    delta = changes(kind)
    row = np.random.default_rng(5).normal(size=AUTHORS_FEATURES).astype(np.float32) * 0.02
    head, ids = jnp.asarray(row[None], dtype), np.zeros(1, np.int32)
    found = equations.safety_features(np.float32(delta), head, ids, share, "authors", dtype)
    expected = authors_mask(delta, row, share, getattr(torch, dtype))
    np.testing.assert_array_equal(found.selected, expected)
    if share != 51:
        assert expected.sum() == AUTHORS_FEATURES - AUTHORS_LEFT_OUT[share]
    rounded = torch.tensor(delta, dtype=getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(found.vector, np.where(expected, rounded, 0))


def test_targets_rounded_as_the_authors_are():
    rng = np.random.default_rng(6)
    start, vector = rng.normal(size=(4, 50)).astype(np.float32) * 3, rng.normal(size=50).astype(np.float32)
    harmful = np.array([True, False, False, True])
    found = equations.targets(start, harmful, vector, "bfloat16")
    for row, given in enumerate(torch.tensor(start, dtype=torch.bfloat16)):
        change = torch.tensor(vector, dtype=torch.bfloat16)
        expected = given + change if harmful[row] else given - change
        np.testing.assert_array_equal(found[row], expected.float().numpy())


def test_a_group_draws_each_prompt_once():
    drawn = equations.draw_prompts(np.random.default_rng(0), 4003, 10, 4)
    assert drawn.shape == (4003,)
    assert all(len({*drawn[start : start + 4]}) == 4 for start in range(0, 4000, 4))
    counts = np.bincount(drawn, minlength=10)
    assert counts.shape == (10,) and counts.min() > 320 and counts.max() < 480
    more = equations.draw_prompts(np.random.default_rng(1), 12, 5, 6)
    assert all(sorted(more[start : start + 5]) == [0, 1, 2, 3, 4] for start in (0, 6))
    assert more[5] == more[0] and more[11] == more[6]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_objective_and_its_gradient(reduction):
    """L(θ) of a linear model with an adapter, by torch with dense weights."""
    rng = np.random.default_rng(3)
    x, target, frozen = (rng.normal(size=shape) for shape in ((5, 7), (5, 6), (7, 6)))
    a, b, scale, weight = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 3, 6)), 0.25, 0.7

    def ours(a, b):
        predicted = x @ frozen + scale * x @ a[0] @ b[0] + scale * x @ a[1] @ b[1]
        distances = equations.squared_distance(predicted, target, reduction)
        return equations.objective(distances.sum(), 5, equations.weight_change([(a, b, scale)]), weight)

    one, other = (torch.tensor(array, requires_grad=True) for array in (a, b))
    dense = [scale * one[layer] @ other[layer] for layer in range(2)]
    predicted = torch.tensor(x) @ (torch.tensor(frozen) + sum(dense))
    squares = (predicted - torch.tensor(target)) ** 2
    distances = squares.sum(1) if reduction == "sum" else squares.mean(1)
    expected = distances.mean() + weight * sum((change**2).sum() for change in dense)
    expected.backward()
    arrays = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(*arrays)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, (one.grad, other.grad), strict=True):
        assert relative_error(gradient, wanted.numpy()) < 1e-5


def test_adapter_change():
    now, start = (
        {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])},
        {"a": jnp.zeros(2), "b": jnp.ones((1, 1))},
    )
    assert float(equations.adapter_change(now, start)) == 1 + 4 + 4


def test_shapes_that_would_broadcast_are_refused():
    rows, row = jnp.ones((3, 4)), jnp.ones(4)
    adapters = {"a": jnp.ones((2, 4, 1)), "b": jnp.ones((2, 1, 4))}
    for wrong in (
        lambda: equations.mean_change(rows, row),
        lambda: equations.mean_change(rows, rows[:, :1]),
        lambda: equations.contribution(row, rows),
        lambda: equations.contribution(row, row[:1]),
        lambda: equations.select(rows, 51),
        lambda: equations.targets(rows, np.array([True]), row),
        lambda: equations.targets(rows, np.ones(3, bool), row[:1]),
        lambda: equations.squared_distance(rows, rows[:1]),
        lambda: equations.weight_change([(adapters["a"], adapters["b"][0], 1.0)]),
        lambda: equations.weight_change([(adapters["a"], jnp.ones((2, 2, 4)), 1.0)]),
        lambda: equations.adapter_change(adapters, adapters | {"b": jnp.ones((2, 1, 1))}),
        lambda: safety_vector(rows, row, row),
    ):
        with pytest.raises(AssertionError):
            wrong()
