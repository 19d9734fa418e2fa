"""Dropout of the adapters: its masks, and what a model computes with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rrs_jax
from helpers.tensors import relative_error
from helpers.train_step import compiled_step
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.models.adapters import adapted
from rrs_jax.models.dropout import Dropout
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.quantised import Float8, Int8, product
from rrs_jax.models.stack import layer_at
from rrs_jax.testing import write_qwen_audio

RATE = 0.1
OWNERS = {
    name: name for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
}


def masks_of(key, rate=RATE, layers=3, rows=6, tokens=40, features=700) -> np.ndarray:
    """Every layer's and adapter's mask, bool (L, K, B, T, I)."""
    dropout = Dropout.draw(key, OWNERS, rate, (layers, rows, tokens, features))
    each_layer = [layer_at(dropout, layer) for layer in range(layers)]
    numbers = dropout.numbers(tuple(OWNERS))
    return np.stack([np.stack([one.mask(number, features) for number in numbers]) for one in each_layer])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_masks_are_as_random_numbers(rate):
    """The rate, and that neighbours along every axis know nothing of each other, within four standard
    deviations."""
    masks = np.stack([masks_of(jax.random.key(step), rate).astype(np.float32) for step in range(3)])
    centred = (masks - (1 - rate)) / np.sqrt(rate * (1 - rate))
    assert abs(centred.mean()) * np.sqrt(centred.size) < 4

    def correlation(axis: int, distance: int) -> float:
        one, other = np.split(np.moveaxis(centred, axis, 0), [distance])[1], np.moveaxis(centred, axis, 0)
        products = one * other[: len(one)]
        return abs(products.mean()) * np.sqrt(products.size)

    axes = {"step": 0, "layer": 1, "adapter": 2, "row": 3, "token": 4, "feature": 5}
    for axis, distance in [(name, 1) for name in axes] + [("token", 8), ("feature", 2), ("feature", 256)]:
        assert correlation(axes[axis], distance) < 4, (axis, distance)
    # Nor does a feature, or a place, have a rate of its own: the variance of their rates is that of chance.
    for kept_axes in ((5,), (0, 1, 2, 3, 4)):
        other = tuple(axis for axis in range(6) if axis not in kept_axes)
        rates = centred.mean(axis=other) * np.sqrt(np.prod([centred.shape[axis] for axis in other]))
        assert abs(rates.var() - 1) < 4 * np.sqrt(2 / rates.size)
    # Nor do two features have anything in common, nor four numbers that two rows and two features share.
    rows = centred[0, 0].reshape(-1, centred.shape[-1])
    pairs = (rows.T @ rows / np.sqrt(len(rows)))[np.triu_indices(rows.shape[1], 1)]
    assert abs(pairs.var() - 1) < 4 * np.sqrt(2 / pairs.size) and abs(pairs).max() < 6
    products = rows[:-1, :-1] * rows[1:, :-1] * rows[:-1, 1:] * rows[1:, 1:]
    assert abs(products.mean()) * np.sqrt(products.size) < 4


def test_a_mask_depends_on_its_place_alone():
    """Not on how many rows or tokens there are; and it is the same when it is made again."""
    large, small = masks_of(jax.random.key(3)), masks_of(jax.random.key(3), rows=2, tokens=9, features=31)
    np.testing.assert_array_equal(large[:, :, :2, :9, :31], small)


def plain(x, kernels, biases, a, b, masks, owners):
    """The same linears and adapters, one by one."""
    outputs = []
    for kernel, bias, b_one, owner in zip(kernels, biases, b, owners, strict=True):
        y = product(x, kernel) + (0 if bias is None else bias)
        if owner is not None:
            y = y + jnp.where(masks[owner], x, 0) @ a[owner] @ b_one
        outputs.append(y)
    return outputs


@pytest.mark.parametrize("kind", ["float32", "int8", "float8"])
@pytest.mark.parametrize("fused", [False, True], ids=["an adapter each", "three linears of one adapter"])
def test_linears_with_dropout_and_their_derivative(kind, fused):
    """Three linears of one input, of which one may have no adapter."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 24)), jnp.float32)
    weights = [jnp.asarray(rng.normal(size=(24, size)), jnp.float32) for size in (8, 8, 8)]
    kernels = {
        "float32": weights, "int8": [Int8.of(w) for w in weights], "float8": [Float8.of(w.T) for w in weights]
    }[kind]  # fmt: skip
    biases = [jnp.ones(8), None, jnp.arange(8.0)]
    if fused:
        linears, owners = {name: "c_attn" for name in ("q_proj", "k_proj", "v_proj")}, (0, 0, 0)
    else:
        linears, owners = {name: name for name in ("down_proj", "v_proj", "q_proj")}, (0, None, 1)
    dropout = layer_at(Dropout.draw(jax.random.key(1), linears, RATE, (4, 2, 5, 30)), 2)
    numbers = dropout.numbers(("q_proj", "k_proj", "v_proj"))
    assert numbers == ((0,) if fused else (2, 1))
    masks = [dropout.mask(number, 24) for number in numbers]
    assert not all(mask.all() for mask in masks)
    a = [jnp.asarray(rng.normal(size=(24, 3)), jnp.float32) for _ in numbers]
    b = [None if owner is None else jnp.asarray(rng.normal(size=(3, 8)), jnp.float32) for owner in owners]
    factors = [jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32) for _ in weights]

    def total(x, a, b, function):
        return sum(jnp.sum(y * factor) for y, factor in zip(function(x, a, b), factors, strict=True))

    def ours(x, a, b):
        """As `LoRA.packed` puts them: A side by side, zeros in B for the others."""
        rows = [(3 * owner, 3 * (len(numbers) - 1 - owner)) for owner in owners if owner is not None]
        wide = iter([jnp.pad(one, (row, (0, 0))) for one, row in zip(filter_none(b), rows, strict=True)])
        b = [None if one is None else next(wide) for one in b]
        return adapted(numbers, x, kernels, biases, jnp.concatenate(a, axis=1), b, dropout)

    def expected(x, a, b):
        return plain(x, kernels, biases, a, b, masks, owners)

    found, wanted = (
        (function(x, a, b), jax.grad(total, argnums=(0, 1, 2))(x, a, b, function))
        for function in (ours, expected)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert relative_error(one, other) < 1e-5


def filter_none(values: list) -> list:
    return [value for value in values if value is not None]


@pytest.fixture(scope="module")
def prepared(whole_folder, sound_files):
    """A model with random adapters above layer 0, and four clips under one prompt."""
    lora = LoRAConfig(rank=2, first_layer=1, dropout=RATE)
    mesh = make_mesh(devices=jax.devices()[:1])
    loaded = rrs_jax.load_model(whole_folder, lora=lora, mesh=mesh, seed=2)
    rng = np.random.default_rng(3)
    for target in loaded.module.lora.config.targets:
        pair = loaded.module.lora.pair(target)
        pair.lora_b.set_value(jnp.asarray(rng.normal(size=pair.lora_b.shape) * 0.3, jnp.float32))
    return loaded.module, rrs_jax.make_batch(loaded, sound_files[:4], PROMPT_T)


def test_without_a_key_nothing_is_dropped(prepared):
    """In extraction and evaluation, whatever the adapters' rate; and a key without a rate drops nothing."""
    model, batch = prepared
    states = model.representations(batch.batch, batch.audio_bank)
    keyed = batch.batch.replace(dropout_key=jax.random.key(0))
    assert relative_error(model.representations(keyed, batch.audio_bank), states) > 1e-3
    config = model.lora.config
    model.lora.config = dataclasses.replace(config, dropout=0.0)
    np.testing.assert_array_equal(model.representations(batch.batch, batch.audio_bank), states)
    np.testing.assert_array_equal(model.representations(keyed, batch.audio_bank), states)
    model.lora.config = config


def test_the_last_tokens_state_is_that_of_all_tokens(prepared):
    """In the last layer the representation has queries, output projection and MLP of one token alone."""
    model, batch = prepared
    keyed = batch.batch.replace(dropout_key=jax.random.key(4))
    states = model.hidden_states(keyed, batch.audio_bank)
    last = np.take_along_axis(np.asarray(states), np.asarray(keyed.lengths)[:, None, None] - 1, axis=1)[:, 0]
    assert relative_error(model.representations(keyed, batch.audio_bank), last) < 1e-5


def test_a_pass_above_the_first_layers_has_the_masks_of_a_whole_one(prepared):
    model, batch = prepared
    whole = batch.batch.replace(dropout_key=jax.random.key(5))
    below = model.embed(whole.input_ids, whole.audio_index, batch.audio_bank)
    inputs = rrs_jax.models.decoder_pass.DecoderInputs(below, whole.lengths)
    wanted = rrs_jax.models.decoder_pass.Wanted(stop=1)
    states = model.language_model(inputs, None, wanted).states
    above = whole.replace(lower_states=states, lower_layers=1)
    found = model.representations(above, batch.audio_bank)
    assert relative_error(found, model.representations(whole, batch.audio_bank)) < 1e-6


def test_a_released_linear_of_three_projections_has_one_mask(tmp_path, sound_files):
    """Qwen-Audio's c_attn computes queries, keys and values: they see one input."""
    write_qwen_audio(tmp_path)
    mesh = make_mesh(devices=jax.devices()[:1])
    lora = LoRAConfig(rank=2, targets=("c_attn", "w1"), dropout=RATE)
    loaded = rrs_jax.load_model(tmp_path, lora=lora, mesh=mesh)
    released = loaded.module.language_model.layer_class.released
    dropout = loaded.module.lora.draw_dropout(jax.random.key(0), released, (2, 3, 4))
    assert dropout.tokens.shape == (2, 2, 2, 3, 4)
    assert dropout.numbers(("q_proj", "k_proj", "v_proj")) == (0,)
    assert dropout.numbers(("gate_proj", "up_proj")) == (1,) and dropout.numbers(("o_proj",)) == ()
    batch = rrs_jax.make_batch(loaded, sound_files[:2], PROMPT_T)
    keyed = batch.batch.replace(dropout_key=jax.random.key(1))
    assert np.isfinite(loaded.module.representations(keyed, batch.audio_bank)).all()


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_no_mask_is_kept_for_the_backward_pass(remat):
    """All masks of the layers would be 0.6 MB as bits of a byte, five times that with the inputs they cut."""
    without, dropping = (
        compiled_step(remat, dropout=rate)[1].memory_analysis().temp_size_in_bytes for rate in (0.0, RATE)
    )
    assert dropping < without + 300_000
