"""Our modules against transformers, float32, small random models with every quirk switched on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from helpers.clip_prompts import FRAMES, audio_bank, make_batch, prompts, torch_inputs
from helpers.qwen2_audio import make_reference
from helpers.tensors import relative_error
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.models.batch import Batch
from rrs_jax.models.cache import Cache
from rrs_jax.models.decoder_pass import DecoderInputs, Wanted
from rrs_jax.weights.load import load_weights


@pytest.fixture(scope="module")
def model(folder):
    return load_weights(folder)


def test_encoder_with_the_clips_own_frames_equals_thirty_seconds(reference, model, clips):
    seen = []
    hook = reference.model.multi_modal_projector.register_forward_hook(
        lambda _, __, output: seen.append(output)
    )
    with torch.no_grad():
        reference(**torch_inputs(prompts(np.random.default_rng(0))[0], clips, "right"))
    hook.remove()
    counts = [audio_token_count(int(frames)) for frames in FRAMES]
    expected = np.concatenate([clip[:count] for clip, count in zip(seen[0].numpy(), counts, strict=True)])
    bank, _ = audio_bank(model, clips)
    assert relative_error(bank[1:], expected) < 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_hidden_state_representation_and_logits(reference, model, clips, side):
    rows, row_clips = prompts(np.random.default_rng(1))
    inputs = torch_inputs(rows, clips, side)
    with torch.no_grad():
        expected = reference(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].numpy().astype(bool)
    bank, offsets = audio_bank(model, clips)
    batch = make_batch(rows, row_clips, offsets)
    real = np.arange(batch.input_ids.shape[1])[None] < np.asarray(batch.lengths)[:, None]

    x = model.embed(batch.input_ids, batch.audio_index, bank)
    layers = model(batch, bank, Wanted(each_layer="all")).each_layer
    hidden = model.hidden_states(batch, bank)
    for ours, theirs in zip([x, *layers[:-1], hidden], expected.hidden_states, strict=True):
        assert relative_error(np.asarray(ours)[real], theirs.numpy()[mask]) < 1e-4
    last = np.stack(
        [row[keep][-1] for row, keep in zip(expected.hidden_states[-1].numpy(), mask, strict=True)]
    )
    assert relative_error(model.representations(batch, bank), last) < 1e-4
    assert relative_error(np.asarray(model.logits(hidden))[real], expected.logits.numpy()[mask]) < 1e-4
    assert relative_error(model.head_row(40), reference.lm_head.weight[40].detach()) == 0


def test_cached_decoding_equals_the_whole_sequence(model, clips):
    """Prompts of unequal length, then five tokens one by one: logits as of one pass over everything."""
    rng = np.random.default_rng(2)
    rows, row_clips = prompts(rng)
    bank, offsets = audio_bank(model, clips)
    batch = make_batch(rows, row_clips, offsets)
    continuation = rng.integers(3, 120, (len(rows), 5))
    width = batch.input_ids.shape[1]
    logits, positions, prompts_store = model.prefill(batch, bank)
    cache = Cache.empty(prompts_store, len(rows), width, 1, 5)
    cache = cache.replace(prompts=prompts_store, prompt_lengths=batch.lengths)
    stepwise = [logits]
    for step in range(5):
        tokens = jnp.asarray(continuation[:, step])
        logits, cache = model.decode(tokens, positions + step, jnp.int32(step), cache)
        stepwise.append(logits)
    whole = make_batch(
        [row + more.tolist() for row, more in zip(rows, continuation, strict=True)], row_clips, offsets
    )
    full = np.asarray(model.logits(model.hidden_states(whole, bank)))
    for step in range(6):
        expected = np.stack([full[r, len(row) - 1 + step] for r, row in enumerate(rows)])
        assert relative_error(stepwise[step], expected) < 1e-5


@pytest.mark.parametrize("head_on_disk", [False, True])
def test_tied_head(tmp_path, head_on_disk):
    """transformers 5 stores a tied head as a tensor of its own, transformers 4 leaves it out."""
    reference = make_reference(tie_word_embeddings=True, num_key_value_heads=3)
    reference.lm_head.weight = torch.nn.Parameter(
        reference.model.language_model.embed_tokens.weight.detach().clone()
    )
    reference.save_pretrained(tmp_path)
    if not head_on_disk:
        tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
        del tensors["language_model.lm_head.weight"]
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_weights(tmp_path)
    assert model.language_model.lm_head is None
    check_text_logits(reference, model)


def test_a_head_on_disk_that_differs_is_used_although_the_config_says_tied(tmp_path):
    reference = make_reference(tie_word_embeddings=True)
    reference.save_pretrained(tmp_path)
    check_text_logits(reference, load_weights(tmp_path))


def check_text_logits(reference, model):
    ids = np.random.default_rng(3).integers(3, 120, (2, 9))
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor(ids)).logits.numpy()
    batch = Batch(jnp.asarray(ids), jnp.array([9, 9]), jnp.full((2, 9), -1))
    assert relative_error(model.logits(model.hidden_states(batch, jnp.zeros((1, 48)))), expected) < 1e-4


def test_padding_has_no_influence_and_no_gradient(model):
    """Causality through gradients: what stands behind a row's last token changes nothing."""
    lengths = jnp.array([4, 7])

    def representation(x):
        output = model.language_model(DecoderInputs(x, lengths), None, Wanted(last_only=True))
        return (output.last**2).sum(axis=1)

    x = jax.random.normal(jax.random.key(0), (2, 7, 48))
    gradient = jax.grad(lambda x: representation(x).sum())(x)
    assert np.all(np.asarray(gradient)[0, 4:] == 0) and np.all(
        np.abs(np.asarray(gradient)[0, :4]).sum(-1) > 0
    )


def test_bfloat16_is_close_to_float32(folder, model, clips):
    rows, row_clips = prompts(np.random.default_rng(4))
    bank, offsets = audio_bank(model, clips)
    batch = make_batch(rows, row_clips, offsets)
    low = load_weights(folder, dtype=jnp.bfloat16)
    assert relative_error(low.representations(batch, bank), model.representations(batch, bank)) < 2e-2
