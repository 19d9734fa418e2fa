"""The scan over frozen layers and the linears with adapters against their plain forms, differentiated by JAX
alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from helpers.tensors import relative_error
from rrs_jax.models import stack
from rrs_jax.models.adapters import SAME_INPUT, adapted
from rrs_jax.models.lora import LoRA, LoRAConfig

LAYERS, FIRST, WIDTH = 5, 2, 12


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layer(x, weights, adapter, shared):
    """Computes a layer with a residual, values of all kinds of use, and a bias that stands for an adapter."""
    angle, lengths = shared
    gate = checkpoint_name(x @ weights["gate"], "gate")
    if adapter is not None:
        gate = gate + adapter["bias"]
    y = jax.nn.silu(gate) * jnp.cos(angle) @ weights["down"]
    x = x + y / jnp.sqrt(1 + jnp.mean(y * y, axis=-1, keepdims=True))
    return x, x.sum(axis=1) * lengths[:, None]


@pytest.fixture
def arrays():
    weights = {"gate": draw(0, LAYERS, WIDTH, 20), "down": draw(1, LAYERS, 20, WIDTH)}
    return (
        draw(2, 3, 7, WIDTH),
        (draw(3, 7, 1), jnp.array([7, 3, 5])),
        weights,
        {"bias": draw(4, LAYERS - FIRST, 20)},
    )


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", ["none", "dots", "gate", "lean", "full"])
@pytest.mark.parametrize("stop", [LAYERS, LAYERS - 1])
def test_scan_and_its_derivative(arrays, unroll, remat, stop):
    """A range that begins and ends inside of the stack; outputs of all layers count as well as the last
    state."""
    x, shared, weights, adapters = arrays
    factors = draw(5, stop - FIRST, 3, WIDTH)

    def plain(x, adapters):
        outs = []
        for i in range(FIRST, stop):
            x, out = layer(x, stack.layer_at(weights, i), {"bias": adapters["bias"][i - FIRST]}, shared)
            outs.append(out)
        return jnp.sum(x**2) + jnp.sum(jnp.stack(outs) * factors)

    def scanned(x, adapters):
        scan = stack.LayerScan(layer, FIRST, stop, remat=remat, unroll=unroll)
        x, outs = stack.scan_layers(scan, x, weights, adapters, shared)
        return jnp.sum(x**2) + jnp.sum(outs * factors)

    for ours, theirs in zip(
        jax.tree.leaves(jax.jit(jax.value_and_grad(scanned, (0, 1)))(x, adapters)),
        jax.tree.leaves(jax.value_and_grad(plain, (0, 1))(x, adapters)),
        strict=True,
    ):
        assert relative_error(ours, theirs) < 1e-5


def test_a_derivative_is_taken_apart_into_inputs_and_saved_arrays():
    """The example of `Pullback`: of x ← sin(x @ w) only the cosine is saved."""
    x, w, other = draw(0, 3, WIDTH), draw(1, WIDTH, WIDTH), draw(2, WIDTH, WIDTH)
    found = []

    @jax.jit
    def derivative(x, w, dy):
        _, pull = jax.vjp(lambda x: jnp.sin(x @ w), x)
        pullback, saved = stack.Pullback.taken_apart(pull, (w,))
        found.append((pullback.sources, [leaf.shape for leaf in saved]))
        return saved, pullback.put_together(saved, (other,))(dy)[0]

    dy = jnp.ones((3, WIDTH))
    (cosine,), dx = derivative(x, w, dy)
    assert found == [([0, None], [(3, WIDTH)])]
    assert relative_error(cosine, jnp.cos(x @ w)) < 1e-6
    assert relative_error(dx, (dy * jnp.cos(x @ w)) @ other.T) < 1e-6


def test_layers_without_adapters_have_a_derivative_too(arrays):
    x, shared, weights, _ = arrays

    def total(x, run):
        return jnp.sum(run(x)[0] ** 2)

    def plain(x):
        for i in range(LAYERS):
            x, out = layer(x, stack.layer_at(weights, i), None, shared)
        return x, out

    scan = stack.LayerScan(layer, 0, LAYERS)
    gradient = jax.grad(total)(x, lambda x: stack.scan_layers(scan, x, weights, None, shared))
    assert relative_error(gradient, jax.grad(total)(x, plain)) < 1e-5


def test_adapted_linears_and_their_derivative():
    """Two with an adapter and one without, two with a bias; rows of any number of axes."""
    x, a = draw(0, 3, 5, WIDTH), draw(1, WIDTH, 4)
    kernels = [draw(2, WIDTH, 8), draw(3, WIDTH, 6), draw(4, WIDTH, 10)]
    biases = [draw(5, 8), None, draw(6, 10)]
    factors = [draw(7, 3, 5, 8), draw(8, 3, 5, 6), draw(9, 3, 5, 10)]
    b = [draw(10, 4, 8), draw(11, 4, 6), None]

    def plain(x, kernels, biases, a, b):
        outputs = [x @ kernel for kernel in kernels]
        outputs = [y if bias is None else y + bias for y, bias in zip(outputs, biases, strict=True)]
        return [y if one is None else y + x @ a @ one for y, one in zip(outputs, b, strict=True)]

    def total(function, x, a, b):
        outputs = function(x, kernels, biases, a, b)
        return sum(jnp.sum(jnp.sin(y) * factor) for y, factor in zip(outputs, factors, strict=True))

    ours = functools.partial(adapted, ())  # without dropout there are no masks to number
    for found, theirs in zip(
        jax.tree.leaves(jax.value_and_grad(lambda *inputs: total(ours, *inputs), (0, 1, 2))(x, a, b)),
        jax.tree.leaves(jax.value_and_grad(lambda *inputs: total(plain, *inputs), (0, 1, 2))(x, a, b)),
        strict=True,
    ):
        assert relative_error(found, theirs) < 1e-5


@pytest.mark.parametrize("targets", [None, ("v_proj", "up_proj"), ("k_proj", "q_proj")])
@pytest.mark.parametrize("all_layers", [False, True])
def test_packed_adapters_add_what_each_pair_does(targets, all_layers):
    linears = {
        name: (WIDTH, 8 + place) for place, name in enumerate(name for names in SAME_INPUT for name in names)
    }
    lora = LoRA(LoRAConfig(rank=3, alpha=5.0, targets=targets, first_layer=FIRST), linears, LAYERS)
    for place, target in enumerate(lora.config.targets):
        pair = lora.pair(target)
        pair.lora_a.set_value(draw(place, *pair.lora_a.shape))
        pair.lora_b.set_value(draw(place + 10, *pair.lora_b.shape))
    packed = lora.packed(jnp.float32, {name: (name, None) for name in linears}, all_layers=all_layers)
    assert set(packed.b) == set(lora.config.targets)
    x = draw(20, 4, WIDTH)
    for names in SAME_INPUT:
        for name in set(names) & set(packed.b):
            pair, added = lora.pair(name), x @ packed.a[names[0]] @ packed.b[name]
            expected = x @ pair.lora_a[...] @ pair.lora_b[...] * 5.0 / 3.0
            assert relative_error(added[-len(expected) :], expected) < 1e-5
            assert len(added) == (LAYERS if all_layers else LAYERS - FIRST) and not np.any(
                added[: -len(expected)]
            )
