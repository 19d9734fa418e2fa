"""Qwen2.5-Omni's thinker against transformers, float32, small random models with every quirk switched on."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from helpers.omni import THINKER, WHOLE, make_thinker, make_whole, save_whole
from helpers.tensors import relative_error
from rrs_jax.errors import UserError
from rrs_jax.frozen import audio_bank
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import MelConfig, audio_token_count, log_mel, pad_features
from rrs_jax.models.decoder_pass import Wanted
from rrs_jax.models.layers import rotary_angles, rotate
from rrs_jax.models.qwen2_5_omni import OmniConfig
from rrs_jax.models.released import RELEASED
from rrs_jax.testing.qwen2_5_omni import AUDIO, small_thinker_values
from rrs_jax.weights.load import abstract_model, load_weights
from rrs_jax.weights.safetensors_io import read_folder, save_file

# Mel frames of five clips, windows having 20: one short window; windows and a rest, odd and even; just full
# windows; a rest of one frame.
FRAMES = (7, 97, 38, 60, 41)
BOS, EOS = 133, 134


@pytest.fixture(scope="module")
def reference():
    return make_thinker()


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("thinker")
    reference.save_pretrained(path, max_shard_size="60KB")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_weights(folder)


def random_clips(frames, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(12, count)).astype(np.float32) for count in frames]


def encode(model, clips) -> list[np.ndarray]:
    """All clips in one batch; what lies behind a clip's end is noise, which must not matter."""
    multiple = model.frame_multiple
    longest = -(-max(clip.shape[1] for clip in clips) // multiple) * multiple
    batch = np.random.default_rng(9).normal(size=(len(clips), 12, longest)).astype(np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    lengths = jnp.asarray([clip.shape[1] for clip in clips])
    output = np.asarray(
        nnx.jit(lambda model, x, lengths: model.encode_audio(x, lengths))(model, jnp.asarray(batch), lengths)
    )
    return [row[: audio_token_count(clip.shape[1])] for row, clip in zip(output, clips, strict=True)]


@pytest.mark.parametrize("n_window", [10, 7], ids=["even window", "odd window"])
def test_encoder(tmp_path, n_window):
    """An odd window's pooling joins neighbouring windows."""
    values = small_thinker_values()
    values["audio_config"]["n_window"] = n_window
    torch.manual_seed(0)
    reference = THINKER(transformers.Qwen2_5OmniThinkerConfig(**values)).float().eval()
    reference.save_pretrained(tmp_path)
    clips = random_clips(FRAMES)
    with torch.no_grad():
        expected = reference.model.audio_tower(
            torch.tensor(np.concatenate(clips, axis=1)), feature_lens=torch.tensor(FRAMES)
        ).last_hidden_state.numpy()
    ours = np.concatenate(encode(load_weights(tmp_path), clips))
    assert ours.shape == expected.shape
    assert relative_error(ours, expected) < 1e-5


def test_a_clips_embeddings_do_not_depend_on_its_neighbours(model):
    clips = random_clips(FRAMES)
    for clip, together in zip(clips, encode(model, clips), strict=True):
        assert relative_error(encode(model, [clip])[0], together) < 1e-6


def prompts(rng) -> tuple[list[list[int]], list[list[int]]]:
    """Two clips in one prompt, one clip, no clip, two clips; of different length. Also each row's clips."""

    def text(n):
        return rng.integers(3, 120, n).tolist()

    def clip(i):
        return [BOS, *[AUDIO] * audio_token_count(FRAMES[i]), EOS]

    rows = [
        text(5) + clip(1) + text(3) + clip(0) + text(7),
        text(2) + clip(2) + text(4),
        text(9),
        clip(3) + clip(4) + text(1),
    ]
    return rows, [[1, 0], [2], [], [3, 4]]


def ours_inputs(model, rows, row_clips, clips):
    """The batch and the bank."""
    bank, offsets = [np.zeros((1, 48), np.float32)], []
    for encoded in encode(model, clips):
        offsets.append(sum(map(len, bank)))
        bank.append(encoded)
    counts = [audio_token_count(clip.shape[1]) for clip in clips]
    triples = [
        (row, [offsets[i] for i in ids], [counts[i] for i in ids])
        for row, ids in zip(rows, row_clips, strict=True)
    ]
    return collate(triples, max(map(len, rows)) + 3, AUDIO), jnp.asarray(np.concatenate(bank)), triples


def torch_inputs(rows, row_clips, clips, side: str) -> dict:
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for r, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[r, where], mask[r, where] = row, 1
    order = [i for row in row_clips for i in row]  # audio comes in the order of the rows
    features = np.zeros((len(order), 12, max(FRAMES)), np.float32)
    feature_mask = np.zeros((len(order), max(FRAMES)), np.int64)
    for place, i in enumerate(order):
        features[place, :, : FRAMES[i]], feature_mask[place, : FRAMES[i]] = clips[i], 1
    return dict(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        input_features=torch.tensor(features),
        feature_attention_mask=torch.tensor(feature_mask),
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_hidden_state_representation_and_logits(reference, model, side):
    rows, row_clips = prompts(np.random.default_rng(1))
    clips = random_clips(FRAMES)
    inputs = torch_inputs(rows, row_clips, clips, side)
    with torch.no_grad():
        expected = reference(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].numpy().astype(bool)
    batch, bank, _ = ours_inputs(model, rows, row_clips, clips)
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


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_are_those_of_get_rope_index(reference, model, monkeypatch, side):
    """The rotation gets exactly three equal rows that count from a row's first token."""
    rows, row_clips = prompts(np.random.default_rng(2))
    inputs = torch_inputs(rows, row_clips, random_clips(FRAMES), side)
    frames = torch.tensor([FRAMES[i] for clips in row_clips for i in clips])
    expected, _ = reference.model.get_rope_index(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], audio_seqlens=frames
    )
    seen = []

    def record(positions, *arguments):
        seen.append(np.asarray(positions))
        return rotary_angles(positions, *arguments)

    monkeypatch.setattr("rrs_jax.models.decoder.rotary_angles", record)
    batch, bank, _ = ours_inputs(model, rows, row_clips, random_clips(FRAMES))
    model.hidden_states(batch, bank)
    (positions,) = seen
    assert positions.shape[0] == 3
    mask = inputs["attention_mask"].numpy().astype(bool)
    for r, row in enumerate(rows):
        for axis in range(3):
            ours = np.broadcast_to(positions[axis], batch.input_ids.shape)[r, : len(row)]
            assert ours.tolist() == expected[axis, r][torch.tensor(mask[r])].tolist()


def test_three_sections_turn_by_time_height_and_width(reference):
    """Different positions on each axis, as pictures have them, against transformers' rotation."""
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import apply_rotary_pos_emb

    rng = np.random.default_rng(3)
    positions, x = rng.integers(0, 300, (3, 2, 9)), rng.normal(size=(2, 9, 4, 12)).astype(np.float32)
    cos, sin = reference.model.language_model.rotary_emb(torch.tensor(x), torch.tensor(positions))
    expected, _ = apply_rotary_pos_emb(
        torch.tensor(x).transpose(1, 2), torch.tensor(x).transpose(1, 2), cos, sin
    )
    ours = rotate(jnp.asarray(x), rotary_angles(jnp.asarray(positions), 12, 5000.0, (1, 2, 3)))
    assert relative_error(ours, expected.transpose(1, 2)) < 1e-5
    flat = rotate(jnp.asarray(x), rotary_angles(jnp.asarray(positions[0]), 12, 5000.0))
    assert relative_error(flat, expected.transpose(1, 2)) > 0.1


def test_greedy_answers_equal_transformers(reference, model):
    rows, row_clips = prompts(np.random.default_rng(4))
    clips = random_clips(FRAMES)
    _, bank, triples = ours_inputs(model, rows, row_clips, clips)
    generator = Generator(
        model, SamplingConfig(max_new_tokens=12, greedy=True), eos_token_ids=(2,), batch_size=4
    )
    answers = {}
    generator.generate([Prompt(key=i, row=row) for i, row in enumerate(triples)], bank, answers.__setitem__)
    for i, row in enumerate(rows):
        inputs = torch_inputs([row], [row_clips[i]], clips, "left")
        if not row_clips[i]:
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            expected = reference.generate(
                **inputs, do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0
            )
        expected = expected[0, len(row) :].tolist()
        assert answers[i] == (expected[:-1] if expected[-1] == 2 else expected)


@pytest.mark.parametrize("at_once, batches", [(1, [8, 8]), (2**15, [16])])
def test_sound_to_embeddings_as_transformers_extractor_and_encoder(
    reference, model, monkeypatch, at_once, batches
):
    """Waveforms with 300 s of padding there and the clip's own frames here; lengths that fill no frame and no
    window. In two batches and in one, filled up to what eight devices divide."""
    seen = []
    monkeypatch.setattr(audio_bank, "FRAMES_AT_ONCE", at_once)
    monkeypatch.setattr(
        audio_bank, "pad_features", lambda clips, size: seen.append(len(clips)) or pad_features(clips, size)
    )
    rng = np.random.default_rng(5)
    sounds = [
        rng.normal(size=n).astype(np.float32) * 0.1
        for n in (3_201, 16_000, 9_999, 23_457, *range(4_000, 16_000, 2_013))
    ]
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=12, chunk_length=300, return_attention_mask=True
    )
    features = extractor(
        sounds, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    lengths = features["attention_mask"].sum(1)
    packed = features["input_features"].transpose(1, 2)[features["attention_mask"].bool()].T
    with torch.no_grad():
        expected = reference.model.audio_tower(packed, feature_lens=lengths).last_hidden_state.numpy()
    mel = MelConfig(num_mel_bins=12, max_seconds=300)
    bank = audio_bank.make_audio_bank(model, mel, sounds, batch_size=3)
    assert seen == batches
    assert bank.counts == tuple(audio_token_count(int(m)) for m in lengths)
    assert relative_error(bank.array[1:], expected) < 1e-4
    with pytest.raises(UserError, match="at most 300 s"):
        log_mel(np.zeros(300 * 16_000 + 1, np.float32), mel)


@pytest.mark.parametrize("size", ["omni-7b", "omni-3b"])
def test_the_released_sizes_have_the_parameters_and_keys_of_transformers(size):
    """Names, shapes and counts against transformers on the meta device."""
    values = RELEASED[size]
    with torch.device("meta"):
        reference = THINKER(transformers.Qwen2_5OmniThinkerConfig(**values["thinker_config"]))
    renamed = {}
    for name, parameter in reference.named_parameters():
        name = name.removeprefix("model.").replace("language_model.", "model.")
        renamed["thinker." + name] = tuple(parameter.shape)
    model, table = abstract_model(values, jnp.bfloat16)
    shapes = {tuple(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    ours = {}
    for row in table.rows:
        shape = shapes[row.path][1:] if row.layers else shapes[row.path]
        ours |= dict.fromkeys(row.names(), row.convert(np.broadcast_to(np.int8(0), shape)).shape)
    assert {row.path for row in table.rows} == shapes.keys()
    carried = {name for name in renamed if table.is_carried(name)}
    assert ours == {name: shape for name, shape in renamed.items() if name not in carried}
    unloaded = sum(int(np.prod(renamed[name])) for name in carried)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + unloaded == sum(
        p.numel() for p in reference.parameters()
    )
    if size == "omni-7b":
        assert (
            sum(p.numel() for p in reference.parameters()) == 8_931_813_888
        )  # MODELS.md: a published release's total
        assert len(renamed) == 1346 and len(carried) == 518 + 1


def test_tied_head_of_a_thinker(tmp_path):
    reference = make_thinker(tie_word_embeddings=True)
    reference.save_pretrained(tmp_path)
    model = load_weights(tmp_path)
    ids = np.random.default_rng(3).integers(3, 120, (2, 9))
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor(ids)).logits.numpy()
    batch = collate([(row.tolist(), [], []) for row in ids], 9, AUDIO)
    assert relative_error(model.logits(model.hidden_states(batch, jnp.zeros((1, 48)))), expected) < 1e-4


@pytest.mark.parametrize("kind", ["whole", "thinker"])
def test_both_kinds_of_folder_load_and_a_missing_tensor_is_named(tmp_path, kind):
    if kind == "whole":
        save_whole(make_whole(), tmp_path)
    else:
        make_thinker().save_pretrained(tmp_path)
    load_weights(tmp_path)
    entries = read_folder(tmp_path)
    prefix = "thinker." if kind == "whole" else ""
    tensors = {name: np.array(entry.array()) for name, entry in entries.items()}
    del tensors[f"{prefix}model.layers.0.self_attn.k_proj.weight"]
    tensors[f"{prefix}extra.weight"] = np.zeros(3, np.float32)
    save_file(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(UserError) as error:
        load_weights(tmp_path)
    assert (
        f"{prefix}model.layers.0.self_attn.k_proj.weight is missing; {prefix}extra.weight is surplus"
        in str(error.value)
    )
    assert "visual" not in str(error.value) and "talker" not in str(error.value)


def test_settings_that_are_not_computed_are_refused():
    values = copy.deepcopy(RELEASED["omni-7b"])
    values["thinker_config"]["text_config"]["rope_scaling"] = {"rope_type": "yarn"}
    with pytest.raises(UserError, match="rope_scaling is 'yarn'"):
        OmniConfig.from_hf(values)


def test_bfloat16_is_close_to_float32(folder, model):
    rows, row_clips = prompts(np.random.default_rng(6))
    low = load_weights(folder, dtype=jnp.bfloat16)
    clips = random_clips(FRAMES)
    results = []
    for candidate in (low, model):
        batch, bank, _ = ours_inputs(candidate, rows, row_clips, clips)
        results.append(candidate.representations(batch, bank))
    assert relative_error(*results) < 3e-2


def test_no_gradient_leaves_the_window(model):
    """A frame changes the embeddings of its own window alone."""
    x = jax.random.normal(jax.random.key(0), (1, 12, 60))

    def second_window(x):
        return (model.encode_audio(x, jnp.array([60]))[0, 5:10] ** 2).sum()

    gradient = np.abs(np.asarray(jax.grad(second_window)(x))).sum(axis=(0, 1))
    assert np.all(gradient[:20] == 0) and np.all(gradient[40:] == 0) and np.all(gradient[20:40] > 0)


def test_whole_models_thinker_is_the_thinker(tmp_path):
    """Loaded from the whole folder, the numbers are those of transformers' whole class."""
    reference = make_whole()
    save_whole(reference, tmp_path)
    model = load_weights(tmp_path)
    rows, row_clips = prompts(np.random.default_rng(7))
    clips = random_clips(FRAMES)
    inputs = torch_inputs(rows, row_clips, clips, "right")
    with torch.no_grad():
        logits = WHOLE.from_pretrained(tmp_path).thinker(**inputs).logits.numpy()
    batch, bank, _ = ours_inputs(model, rows, row_clips, clips)
    real = np.arange(batch.input_ids.shape[1])[None] < np.asarray(batch.lengths)[:, None]
    ours = np.asarray(model.logits(model.hidden_states(batch, bank)))[real]
    assert relative_error(ours, logits[inputs["attention_mask"].numpy().astype(bool)]) < 1e-4
