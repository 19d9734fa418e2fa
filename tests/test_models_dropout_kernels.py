"""The kernels of adapters with dropout, their operations one by one, against products of masked inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.dropout_kernels import interpret_kernels
from helpers.tensors import relative_error
from helpers.train_step import random_rows
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.models import dropout_kernels, thin_products
from rrs_jax.models.dropout import Dropout
from rrs_jax.models.dropout_kernels import Tiles
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.stack import layer_at
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, TrainStep
from rrs_jax.weights.load import load_weights

OWNERS = {"down_proj": "down_proj", "v_proj": "v_proj", "k_proj": "k_proj", "q_proj": "q_proj"}
SHAPES = [  # rank, rows, tokens, features, tiles
    (16, 2, 40, 128, Tiles(16, 64, 16)),  # one part
    (16, 2, 40, 128, Tiles(32, 32, 1)),  # a part for each tile, the last one's tokens not whole
    (3, 3, 7, 64, Tiles(16, 16, 3)),  # a rank below a tensor core's tile; fewer tokens than two tiles
    (40, 1, 70, 192, Tiles(16, 64, 2)),  # a rank that is no power of two
]


def layer_of_masks(rows: int, tokens: int, features: int) -> Dropout:
    """The second layer's, of an input narrower than the widest."""
    return layer_at(Dropout.draw(jax.random.key(1), OWNERS, 0.1, (2, rows, tokens, features + 5)), 1)


def draw(*size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(size).normal(size=size), jnp.float32)


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("down_proj",)])
@pytest.mark.parametrize("rank, rows, tokens, features, tiles", SHAPES)
def test_values_and_gradients(names, rank, rows, tokens, features, tiles):
    dropout = layer_of_masks(rows, tokens, features)
    numbers = dropout.numbers(names)
    x, a = draw(rows, tokens, features), draw(features, rank * len(names))
    of_thin = draw(rows, tokens, rank * len(names))

    def expected(x, a):
        parts = zip(numbers, jnp.split(a, len(numbers), axis=1), strict=True)
        return jnp.concatenate(
            [jnp.where(dropout.mask(number, features), x, 0) @ one for number, one in parts], axis=-1
        )

    thin, pull = jax.vjp(expected, x, a)
    options = {"tiles": tiles, "interpret": True}
    found = [
        dropout_kernels.thin_product(numbers, x, a, dropout, **options),
        dropout_kernels.input_gradient(numbers, a, of_thin, dropout, **options),
        dropout_kernels.matrix_gradient(numbers, x, of_thin, dropout, **options),
    ]
    assert relative_error(x @ a, thin) > 0.1  # the masks do something
    for one, other in zip(found, (thin, *pull(of_thin)), strict=True):
        assert one.dtype == jnp.float32 and relative_error(one, other) < 1e-6


def test_the_masks_are_those_of_dropout_bit_for_bit():
    """The derivative of an adapter's first thin number by x is its mask, where A is one."""
    dropout = layer_of_masks(2, 24, 64)
    numbers = dropout.numbers(("q_proj", "k_proj", "v_proj"))
    assert numbers == (3, 2, 1)
    for k, number in enumerate(numbers):
        first = jnp.zeros(3 * 16).at[16 * k].set(1)
        a, of_thin = jnp.broadcast_to(first, (64, 48)), jnp.broadcast_to(first, (2, 24, 48))
        found = dropout_kernels.input_gradient(
            numbers, a, of_thin, dropout, tiles=Tiles(16, 16, 1), interpret=True
        )
        np.testing.assert_array_equal(found, dropout.mask(number, 64).astype(np.float32))


def test_what_the_kernels_serve():
    """16 bit, whole tiles of features, a tile's tokens and ranks up to 64; on a CPU nothing."""
    assert dropout_kernels.serves(jnp.bfloat16, (2304, 11008), 64)
    assert not dropout_kernels.serves(jnp.float32, (2304, 11008), 64)
    assert not dropout_kernels.serves(jnp.bfloat16, (2304, 11016), 64)
    assert not dropout_kernels.serves(jnp.bfloat16, (16, 11008), 64)
    assert not dropout_kernels.serves(jnp.bfloat16, (2304, 11008), 65)
    assert not thin_products._in_a_kernel(jnp.bfloat16, (16, 144, 11008), 64)


def losses(folder, mesh) -> tuple[list[float], dict]:
    """Three steps' losses, and the adapters behind them."""
    model = load_weights(folder, lora=LoRAConfig(rank=4, dropout=0.1), mesh=mesh)
    rng = np.random.default_rng(0)
    strategy = RRS(rng.normal(size=(8, 48)).astype(np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(learning_rate=1e-3, remat="dots"), mesh, 3)
    state, found = step.init(), []
    bank = jax.device_put(rng.normal(size=(9, 48)).astype(np.float32), step.replicated)
    for _ in range(3):
        rows = [step.place(random_rows(rng, strategy, 8, 16, 120))]
        state, metrics, _ = step(state, bank, rows)
        found.append(float(metrics.loss))
    return found, nnx.to_pure_dict(jax.device_get(state.lora))


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)], ids=["one", "data 8", "data 2 × fsdp 4"])
def test_a_step_in_kernels_is_a_step_without(folder, monkeypatch, shape):
    """Each device has its own rows, and the sums over rows are of all devices."""
    expected, adapters = losses(folder, make_mesh(devices=jax.devices()[:1]))
    used = interpret_kernels(monkeypatch)
    found, own = losses(folder, make_mesh(*shape, devices=jax.devices()[: shape[0] * shape[1]]))
    assert set(used) == {"thin_product", "input_gradient", "matrix_gradient"}
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(adapters), strict=True):
        assert relative_error(one, other) < 1e-3
