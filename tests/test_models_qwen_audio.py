"""Qwen-Audio-Chat against the NumPy reference, float32 against float64, and against facts of the release."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import qwen_audio_reference as plain
from helpers.tensors import relative_error
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.frozen.audio_bank import make_audio_bank
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import MelConfig, log_mel
from rrs_jax.models.cache import Cache
from rrs_jax.models.decoder_pass import Wanted
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.qwen_audio import QwenAudioConfig
from rrs_jax.testing.qwen_audio import END, PAD, START, shapes, small_values, write_qwen_audio
from rrs_jax.weights.load import abstract_model, load_weights

MEL = MelConfig(num_mel_bins=80, partial_frame=False, extra_tokens=2)
FRAMES = (22, 41, 8, 27, 3)  # even and odd halves and quarters; 3 gives one vector
# One clip; two of them, beyond four times the trained length; none, beyond it; one; text within it; a short
# one.
CLIPS = ([0], [1, 3], [], [2], [], [4])
TEXTS = ((4, 5), (3, 9, 70), (21,), (2, 3), (7,), (1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen_audio")
    write_qwen_audio(path)
    return path


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    written = write_qwen_audio(tmp_path_factory.mktemp("again"))
    return {name: array.astype(np.float64) for name, array in written.items()}


@pytest.fixture(scope="module")
def model(folder):
    return load_weights(folder)


def random_clips() -> list[np.ndarray]:
    """Features with silence behind the end, which the released encoder cuts off."""
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(80, frames + 5)).astype(np.float32) for frames in FRAMES]
    for clip, frames in zip(clips, FRAMES, strict=True):
        clip[:, frames + 1 :] = -1.3
    return clips


def encode(model, clips, frames, width: int) -> list[np.ndarray]:
    """All clips in one batch of `width` frames; behind each clip lies noise."""
    batch = np.random.default_rng(9).normal(size=(len(clips), 80, width)).astype(np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[:, : clip.shape[1]] = clip[:, :width]
    output = nnx.jit(lambda model, x, lengths: model.encode_audio(x, lengths))(
        model, jnp.asarray(batch), jnp.asarray(frames)
    )
    return [np.asarray(row)[: MEL.token_count(count)] for row, count in zip(output, frames, strict=True)]


def bank_of(clips) -> tuple[np.ndarray, list[int], list[int]]:
    counts = [len(clip) for clip in clips]
    return (
        np.concatenate([np.zeros((1, 48)), *clips]).astype(np.float32),
        list(np.cumsum([1, *counts])[:-1]),
        counts,
    )


def make_rows(clips, seed: int = 1):
    """Prompts of CLIPS and TEXTS as `collate` takes them, with text before, between and behind the clips."""
    rng = np.random.default_rng(seed)
    _, offsets, counts = bank_of(clips)
    rows = []
    for chosen, texts in zip(CLIPS, TEXTS, strict=True):
        ids = rng.integers(3, 250, texts[0]).tolist()
        for clip, text in zip(chosen, texts[1:], strict=True):
            ids += [START] + [PAD] * (counts[clip] - 2) + [END] + rng.integers(3, 250, text).tolist()
        rows.append((ids, [offsets[clip] for clip in chosen], [counts[clip] for clip in chosen]))
    return rows


def test_each_clip_is_encoded_as_if_alone(model, tensors):
    clips = random_clips()
    expected = [
        plain.encode(tensors, small_values(), clip, frames)
        for clip, frames in zip(clips, FRAMES, strict=True)
    ]
    for width in (44, 60):
        for ours, theirs in zip(encode(model, clips, FRAMES, width), expected, strict=True):
            assert ours.shape == theirs.shape and relative_error(ours, theirs) < 1e-5
    np.testing.assert_array_equal(expected[0][0], tensors["transformer.audio.audio_bos_eos_token.weight"][0])


def test_the_released_batch_changes_the_vectors_of_shorter_clips(model, tensors):
    """The released encoder cuts at the longest clip of the batch, as the documentation says."""
    clips, values = random_clips(), small_values()
    alone = encode(model, clips[:1], FRAMES[:1], 24)[0]
    longest = plain.positions_behind_convolutions(max(FRAMES))
    in_batch = plain.encode(tensors, values, clips[0], FRAMES[0], cut_positions=longest)
    change = np.linalg.norm(in_batch - alone, axis=1)
    assert (change[1:-1] > 1e-3).all() and (change[[0, -1]] < 1e-6).all()


def states_of(tensors, values, clips, row, prompt: int | None = None, more=()):
    ids, offsets, counts = row
    spans = [clips[np.flatnonzero(bank_of(clips)[1] == offset)[0]] for offset in np.asarray(offsets)]
    x = plain.embed(tensors, values, np.asarray([*ids, *more]), spans)
    return plain.decode(tensors, values, x, prompt)


@pytest.mark.parametrize("ntk, logn", [(True, True), (True, False), (False, True), (False, False)])
def test_every_hidden_state_representation_and_logits(tmp_path, ntk, logn):
    changes = dict(use_dynamic_ntk=ntk, use_logn_attn=logn)
    written = write_qwen_audio(tmp_path, **changes)
    tensors, values = (
        {name: array.astype(np.float64) for name, array in written.items()},
        small_values(**changes),
    )
    model = load_weights(tmp_path)
    raw = random_clips()
    clips = [plain.encode(tensors, values, clip, frames) for clip, frames in zip(raw, FRAMES, strict=True)]
    rows = make_rows(clips)
    lengths = [len(ids) for ids, _, _ in rows]
    assert {plain.alpha_of(small_values(), length) for length in lengths} == {1, 3, 15}
    bank = jnp.asarray(bank_of(clips)[0])
    batch = collate(rows, max(lengths) + 3, model.config.audio_token_id)
    batch = jax.tree.map(jnp.asarray, batch)
    expected = [states_of(tensors, values, clips, row) for row in rows]

    x = model.embed(batch.input_ids, batch.audio_index, bank)
    layers = model(batch, bank, Wanted(each_layer="all")).each_layer
    hidden = model.hidden_states(batch, bank)
    for i, (states, length) in enumerate(zip(expected, lengths, strict=True)):
        for ours, theirs in zip([x, *layers[:-1], hidden], states, strict=True):
            assert relative_error(ours[i, :length], theirs) < 1e-5
    assert (
        relative_error(model.representations(batch, bank), np.stack([states[-1][-1] for states in expected]))
        < 1e-5
    )
    logits = np.stack([plain.logits(tensors, states[-1][-1]) for states in expected])
    assert relative_error(model.prefill(batch, bank)[0], logits) < 1e-5


def test_cached_decoding_keeps_the_prompts_alpha(model, tensors):
    """Two answers a prompt, seven tokens each; some prompts cross the trained length only with their
    answers."""
    values = small_values()
    clips = [
        plain.encode(tensors, values, clip, frames)
        for clip, frames in zip(random_clips(), FRAMES, strict=True)
    ]
    rows, (bank, _, _) = make_rows(clips), bank_of(clips)
    answers, steps = 2, 7
    batch = jax.tree.map(jnp.asarray, collate(rows, 120, model.config.audio_token_id))
    more = np.random.default_rng(2).integers(3, 250, (len(rows) * answers, steps))
    logits, positions, prompts = model.prefill(batch, jnp.asarray(bank))
    layers, queries, heads, _, size = prompts.keys.shape
    empty = jnp.zeros((layers, queries, heads, answers, steps, size))
    cache = Cache(prompts, batch.lengths, type(prompts)(empty, empty), jnp.zeros((len(more), steps), bool))
    positions, decode = jnp.repeat(positions, answers), nnx.jit(lambda model, *inputs: model.decode(*inputs))
    stepwise = []
    for step in range(steps):
        logits, cache = decode(model, jnp.asarray(more[:, step]), positions + step, jnp.int32(step), cache)
        stepwise.append(np.asarray(logits))
    for i, tail in enumerate(more):
        row = rows[i // answers]
        hidden = states_of(tensors, values, clips, row, prompt=len(row[0]), more=tail)[-1]
        expected = plain.logits(tensors, hidden[len(row[0]) :])
        assert relative_error(np.stack([logits[i] for logits in stepwise]), expected) < 1e-5


def test_greedy_answers_from_waveforms(model, tensors):
    """Bank, generator and stop tokens together; the tokens are those that the reference finds likeliest."""
    values, rng = small_values(), np.random.default_rng(3)
    # Hops that are whole, begun, and all but whole: a partial one does not count.
    waves = [(rng.normal(size=samples) * 0.1).astype(np.float32) for samples in (2232, 2880, 2448, 2879)]
    bank = make_audio_bank(model, MEL, waves)
    assert [log_mel(wave, MEL)[1] for wave in waves] == [13, 18, 15, 17]
    assert list(bank.counts) == [plain.vectors_of_a_clip(frames) + 2 for frames in (13, 18, 15, 17)]
    rows = []
    for i in range(len(waves)):
        offsets, counts = bank.clips([i])
        ids = [5, 6, START, *[PAD] * (counts[0] - 2), END, *rng.integers(3, 250, 3 + 4 * i).tolist()]
        rows.append((ids, offsets, counts))
    generator = Generator(
        model, SamplingConfig(max_new_tokens=6, greedy=True), eos_token_ids=(), batch_size=4
    )
    answers: dict[int, list[int]] = {}
    generator.generate(
        [Prompt(key=i, row=row) for i, row in enumerate(rows)], bank.array, answers.__setitem__
    )
    for i, (ids, _, _) in enumerate(rows):
        features, frames = log_mel(waves[i], MEL)
        clip, expected = plain.encode(tensors, values, features, frames), []
        for _ in range(6):
            x = plain.embed(tensors, values, np.asarray([*ids, *expected]), [clip])
            expected.append(
                int(plain.logits(tensors, plain.decode(tensors, values, x, len(ids))[-1][-1]).argmax())
            )
        assert answers[i] == expected


def released_values() -> dict:
    """config.json of the release, as MODELS.md has it from the published repository."""
    audio = dict(
        n_mels=80,
        n_ctx=1500,
        n_state=1280,
        n_head=20,
        n_layer=32,
        output_dim=4096,
        avg_pool=True,
        add_audio_bos_eos_token=True,
        audio_start_id=155163,
    )
    return dict(
        model_type="qwen",
        audio=audio,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        kv_channels=128,
        vocab_size=155947,
        layer_norm_epsilon=1e-5,
        rotary_emb_base=10000,
        rotary_pct=1.0,
        seq_length=2048,
        use_dynamic_ntk=True,
        use_logn_attn=True,
        no_bias=True,
    )


def test_the_released_size_by_shape():
    model, table = abstract_model(released_values(), jnp.bfloat16)
    leaves = {tuple(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    ours = {}
    for row in table.rows:
        shape = leaves[row.path][1:] if row.layers else leaves[row.path]
        for name in row.names():
            assert ours.setdefault(name, row.shape_on_disk(shape)) == row.shape_on_disk(shape)
    assert ours == shapes(released_values())
    positions = 1500 * 1280  # a buffer, no parameter
    assert sum(math.prod(shape) for shape in leaves.values()) - positions == 8_394_302_464
    tower = (
        sum(math.prod(shape) for name, shape in ours.items() if name.startswith("transformer.audio."))
        - positions
    )
    assert tower == 640_119_808 and model.config.audio_token_id == (155163, 151851, 155164)


def test_absent_fields_are_those_of_the_released_class():
    config = QwenAudioConfig.from_hf(
        {"model_type": "qwen", "audio": {}, "vocab_size": 155947, "layer_norm_epsilon": 1e-5}
    )
    assert config == QwenAudioConfig.from_hf(released_values())
    assert QwenAudioConfig.from_hf({"audio": {}}).text.rms_norm_eps == 1e-6


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"no_bias": False}, "no_bias is False in place of True"),
        ({"rotary_pct": 0.5}, "rotary_pct is 0.5 in place of 1.0"),
        ({"kv_channels": 4}, "kv_channels × num_attention_heads is 24 in place of 48"),
        (
            {"audio": small_values()["audio"] | {"avg_pool": False}},
            "audio.avg_pool is False in place of True",
        ),
        ({"audio": small_values()["audio"] | {"n_ctx": 750}}, "audio.n_ctx is 750 in place of 1500"),
    ],
)
def test_what_is_not_computed_is_refused(changes, sentence):
    with pytest.raises(UserError) as error:
        QwenAudioConfig.from_hf(small_values(**changes))
    assert sentence in str(error.value)


def test_damaged_weights_are_named(tmp_path):
    write_qwen_audio(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"hidden_size": 96, "kv_channels": 16, "audio": values["audio"] | {"output_dim": 96}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"c_attn.weight has the shape \(144, 48\) in place of \(288, 96\)"):
        load_weights(tmp_path)


def test_the_fused_projections_thirds_are_cut_over_a_mesh(folder, model):
    """Thirds are cut one by one, so that every device has whole heads of queries, keys and values."""
    cut = load_weights(folder, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    for name in ("q_proj", "k_proj", "v_proj"):
        ours, whole = getattr(cut.language_model.layers, name), getattr(model.language_model.layers, name)
        np.testing.assert_array_equal(ours.kernel[...], whole.kernel[...])
        np.testing.assert_array_equal(ours.bias[...], whole.bias[...])
        assert ours.kernel[...].addressable_shards[0].data.shape == (3, 24, 24)


def test_the_fused_projections_thirds_are_rounded_by_themselves(folder, model):
    eight = load_weights(folder, quantize="float8")
    for name in ("q_proj", "k_proj", "v_proj", "down_proj"):
        ours, whole = getattr(eight.language_model.layers, name), getattr(model.language_model.layers, name)
        wanted = np.swapaxes(np.asarray(whole.kernel[...]), 1, 2)
        ours = np.asarray(ours.weight[...], np.float32) * np.asarray(ours.scale[...])[..., None]
        assert np.all(
            np.abs(ours - wanted)
            <= np.maximum(np.abs(wanted) / 16, np.abs(wanted).max(-1, keepdims=True) / 2**18)
        )


def test_an_adapter_of_the_fused_projection_is_one_pair(folder, tensors):
    """A target alone, on a random start: our state is that of the reference with W + s·B·A."""
    values, ids = small_values(), np.random.default_rng(4).integers(3, 250, (2, 23))
    for target, module in {"c_attn": "attn.c_attn", "attn_c_proj": "attn.c_proj"}.items():
        model = load_weights(folder, lora=LoRAConfig(rank=3, alpha=5.0, targets=(target,), first_layer=1))
        pair, rng = model.lora.pair(target), np.random.default_rng(5)
        for parameter in (pair.lora_a, pair.lora_b):
            parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape) * 0.3, jnp.float32))
        changed = dict(tensors)
        for place, layer in enumerate((1, 2)):
            a, b = (np.asarray(parameter[...][place], np.float64) for parameter in (pair.lora_a, pair.lora_b))
            name = f"transformer.h.{layer}.{module}.weight"
            changed[name] = tensors[name] + 5.0 / 3.0 * (a @ b).T
        batch = collate([(row.tolist(), [], []) for row in ids], 23, model.config.audio_token_id)
        ours = model.representations(jax.tree.map(jnp.asarray, batch), jnp.zeros((1, 48)))
        expected = [
            plain.decode(changed, values, changed["transformer.wte.weight"][row])[-1][-1] for row in ids
        ]
        assert relative_error(ours, np.stack(expected)) < 1e-5
        base = [plain.decode(tensors, values, tensors["transformer.wte.weight"][row])[-1][-1] for row in ids]
        assert relative_error(ours, np.stack(base)) > 1e-2
