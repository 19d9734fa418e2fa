"""model.quantize=float8 against NumPy and against torch with its own 8-bit numbers, forward and backward."""

import copy

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.answers import answer, expected_answer
from helpers.clip_prompts import audio_bank, make_batch, prompts, torch_inputs
from helpers.quantised import LORA, load
from helpers.tensors import relative_error
from rrs_jax.generate import Prompt
from rrs_jax.models.lora import LoRAParam
from rrs_jax.models.quantised import Float8, product, product_back

EIGHT_BIT = ml_dtypes.float8_e4m3fn


def rounded(x: np.ndarray) -> np.ndarray:
    """Rounds each row to the nearest of the numbers of its own scale, in float64."""
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-30) / 448
    return (x / scale).astype(EIGHT_BIT).astype(np.float64) * scale


@pytest.fixture
def matrices():
    """x (2, 5, 37), dy (2, 5, 29) and a matrix (29, 37) with rows of zeros, tiny ones and outliers."""
    rng = np.random.default_rng(0)
    x, dy, matrix = (rng.normal(size=size) for size in ((2, 5, 37), (2, 5, 29), (29, 37)))
    x[0, 1], matrix[3], dy[1, 2] = 0, 0, 0
    x[1, 0] *= 1e-6
    x[0, 0, 5], matrix[4, 6], dy[0, 3, 7] = 300.0, 50.0, -90.0
    matrix[7] *= 1e-3
    return x, dy, matrix


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 6e-3)])
def test_products_are_those_of_rounded_rows(matrices, dtype, tolerance):
    """Each element has two roundings of at most 2⁻⁹ in bfloat16."""
    x, dy, matrix = (array.astype(dtype) for array in matrices)
    eight = Float8.of(jnp.asarray(matrix))
    assert eight.rows.dtype == EIGHT_BIT and eight.scale.dtype == jnp.float32
    x, dy, matrix = (array.astype(np.float64) for array in (x, dy, matrix))
    y, dx = product(jnp.asarray(x, dtype), eight), product_back(jnp.asarray(dy, dtype), eight)
    assert y.dtype == dx.dtype == dtype
    scale = np.maximum(np.abs(matrix).max(-1), 1e-30) / 448
    steps = (matrix / scale[:, None]).astype(EIGHT_BIT).astype(np.float64)
    exact, exact_back = rounded(x) @ rounded(matrix).T, rounded(dy * scale) @ steps
    np.testing.assert_allclose(
        np.asarray(y, np.float64), exact, rtol=tolerance, atol=tolerance * np.abs(exact).max() / 100
    )
    np.testing.assert_allclose(
        np.asarray(dx, np.float64),
        exact_back,
        rtol=tolerance,
        atol=tolerance * np.abs(exact_back).max() / 100,
    )
    assert not np.any(y[0, 1]) and not np.any(y[..., 3]) and not np.any(dx[1, 2])
    # What rounding costs is far above the tolerance.
    assert relative_error(y, x @ matrix.T) > 8e-3 and relative_error(dx, dy @ matrix) > 8e-3


def test_the_derivative_passes_through_the_rounding_of_x(matrices):
    x, dy, matrix = (jnp.asarray(array, jnp.float32) for array in matrices)
    eight = Float8.of(matrix)
    (dx,) = jax.vjp(lambda x: product(x, eight), x)[1](dy)
    np.testing.assert_array_equal(dx, product_back(dy, eight))


def test_finer_steps_serve_a_gradient_better_than_a_wider_range():
    """The reason why dy is e4m3 and not e5m2: both directions of a product, with rows whose numbers span five
    decades."""
    rng = np.random.default_rng(1)
    dy = rng.normal(size=(64, 500)) * np.exp(rng.normal(size=(64, 500)) * 2)
    scale = np.abs(dy).max(-1, keepdims=True)
    e5m2 = (dy / scale * 57344).astype(ml_dtypes.float8_e5m2).astype(np.float64) * scale / 57344
    assert relative_error(rounded(dy), dy) < 0.6 * relative_error(e5m2, dy)


def test_a_gpus_products_take_8_bit_operands(matrices, monkeypatch):
    """Both products sum over the last axis, as the H100's 8-bit units want it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    eight = Float8.of(jnp.asarray(matrices[2]))

    def both(x, dy):
        return product(x, eight), product_back(dy, eight)

    lowered = (
        jax.jit(both)
        .trace(*(jnp.asarray(array, jnp.bfloat16) for array in matrices[:2]))
        .lower(lowering_platforms=("cuda",))
    )
    dots = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert len(dots) == 2
    for line, sizes in zip(dots, (("37", "29x37", "29"), ("29", "37x29", "37")), strict=True):
        operands = (
            f"(tensor<2x5x{sizes[0]}xf8E4M3FN>, tensor<{sizes[1]}xf8E4M3FN>) -> tensor<2x5x{sizes[2]}xbf16>"
        )
        assert "contracting_dims = [2] x [1]" in line and operands in line


class Product(torch.autograd.Function):
    """x·Wᵀ of 8-bit numbers of torch, and the gradient of x by the rounded gradient of the product."""

    @staticmethod
    def forward(ctx, x, rows, scale):
        ctx.save_for_backward(rows, scale)
        steps, row_scale = Product.rounded(x)
        return steps @ rows.T * row_scale * scale

    @staticmethod
    def backward(ctx, dy):
        rows, scale = ctx.saved_tensors
        steps, row_scale = Product.rounded(dy * scale)
        return steps @ rows * row_scale, None, None

    @staticmethod
    def rounded(x):
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 448
        return (x / scale).to(torch.float8_e4m3fn).float(), scale


class Float8Linear(torch.nn.Module):
    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.rows, scale = Product.rounded(linear.weight.detach())
        self.scale, self.bias, self.adapter = scale[:, 0], linear.bias, None

    def forward(self, x):
        y = Product.apply(x, self.rows, self.scale)
        if self.adapter is not None:
            a, b = self.adapter
            y = y + LORA.scale * (x @ a @ b)
        return y if self.bias is None else y + self.bias


@pytest.fixture(scope="module")
def eight_bit(reference):
    """The torch model with such linears in the decoder's layers."""
    model = copy.deepcopy(reference)
    for layer in model.model.language_model.layers:
        for module in (layer.self_attn, layer.mlp):
            for name, linear in [*module.named_children()]:
                if isinstance(linear, torch.nn.Linear):
                    setattr(module, name, Float8Linear(linear))
    return model


def test_states_are_those_of_torch(reference, eight_bit, folder, clips):
    rows, row_clips = prompts(np.random.default_rng(1))
    inputs = torch_inputs(rows, clips, "right")
    mask = inputs["attention_mask"].numpy().astype(bool)
    with torch.no_grad():
        expected, plain = (
            m(**inputs, output_hidden_states=True).hidden_states[-1] for m in (eight_bit, reference)
        )
    model = load(folder, "float8", lora=None)
    bank, offsets = audio_bank(model, clips)
    ours = np.asarray(model.hidden_states(make_batch(rows, row_clips, offsets), bank))
    ours = ours[np.arange(ours.shape[1])[None] < np.array([[len(row)] for row in rows])]
    # A sum in another order now and then rounds a number to the other side: one of 2⁻⁴ among thousands.
    assert relative_error(ours, expected.numpy()[mask]) < 4e-3
    assert 2e-2 < relative_error(ours, plain.numpy()[mask]) < 1.2e-1  # of 48 features and three layers


@pytest.mark.parametrize(
    "remat, layers", [("none", "stacked"), ("dots", "stacked"), ("dots", "unrolled"), ("lean", "apart")]
)
def test_gradients_are_those_of_torch(reference, eight_bit, folder, clips, remat, layers):
    """Adapters lie on some linears of the upper layers, so that gradients pass linears with and without
    one."""
    rows, row_clips = prompts(np.random.default_rng(2))
    model = load(folder, "float8")
    model.language_model.unroll = layers == "unrolled"
    if layers == "apart":
        model.language_model.set_apart()
    bank, offsets = audio_bank(model, clips)
    batch, bank = make_batch(rows, row_clips, offsets), jnp.asarray(bank)
    weights = np.random.default_rng(3).normal(size=(len(rows), 48)).astype(np.float32)
    graphdef, lora, rest = nnx.split(model, LoRAParam, ...)

    def total(lora):
        return jnp.sum(nnx.merge(graphdef, lora, rest).representations(batch, bank, remat=remat) * weights)

    ours = nnx.merge(graphdef, jax.jit(jax.grad(total))(lora), rest)

    def torch_gradients(model) -> list[np.ndarray]:
        pairs = {}
        for number, layer in enumerate(model.model.language_model.layers):
            for name in LORA.targets if number >= LORA.first_layer else ():
                pair, place = nnx.merge(graphdef, lora, rest).lora.pair(name), number - LORA.first_layer
                arrays = [
                    torch.tensor(np.asarray(p[...][place]), requires_grad=True)
                    for p in (pair.lora_a, pair.lora_b)
                ]
                linear = getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name)
                pairs[name, place] = arrays
                if isinstance(linear, Float8Linear):
                    linear.adapter = arrays
                else:
                    hooks.append(
                        linear.register_forward_hook(
                            lambda _, x, y, pair=arrays: y + LORA.scale * (x[0] @ pair[0] @ pair[1])
                        )
                    )
        inputs = torch_inputs(rows, clips, "right")
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        last = states[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        (last * torch.tensor(weights)).sum().backward()
        return [array.grad.numpy() for key in sorted(pairs) for array in pairs[key]]

    hooks = []
    try:
        expected, plain = torch_gradients(eight_bit), torch_gradients(reference)
    finally:
        for hook in hooks:
            hook.remove()
        for module in eight_bit.modules():
            if isinstance(module, Float8Linear):
                module.adapter = None
    found = [
        np.asarray(array[...][place])
        for name in sorted(LORA.targets)
        for place in range(2)
        for array in (ours.lora.pair(name).lora_a, ours.lora.pair(name).lora_b)
    ]
    for value, wanted in zip(found, expected, strict=True):
        assert relative_error(value, wanted) < 1e-2
    together = [np.concatenate([array.ravel() for array in arrays]) for arrays in (found, expected, plain)]
    assert relative_error(together[0], together[1]) < 4e-3 and relative_error(together[0], together[2]) > 2e-2


def test_greedy_answers_are_those_of_torch(eight_bit, folder):
    model = load(folder, "float8", lora=None)
    rng = np.random.default_rng(5)
    texts = [rng.integers(60, 120, length).tolist() for length in (3, 9, 4, 17, 5)]
    answers = answer(
        model,
        [Prompt(key=i, row=(ids, [], [])) for i, ids in enumerate(texts)],
        greedy=True,
        max_new_tokens=10,
    )
    for i, ids in enumerate(texts):
        assert answers[i] == expected_answer(eight_bit, ids, max_new_tokens=10)
