"""docs/adding_a_model.md, followed for a small made-up model: three parts and a name are enough."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rrs_jax
from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import MelConfig, log_mel
from rrs_jax.inputs.prompt_format import PromptFormat
from rrs_jax.models.architectures import ARCHITECTURES
from rrs_jax.models.audio_encoder import AudioEncoderConfig
from rrs_jax.models.audio_language_model import AudioLanguageModel
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.hf_config import picked
from rrs_jax.models.layers import Linear
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.run.context import modes_of
from rrs_jax.testing.tokenizer import write_tokenizer
from rrs_jax.weights.export import adapter_config, export_adapter, export_merged
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import read_folder, save_file
from rrs_jax.weights.table import DECODER_MODULES, Layout, Row, WeightTable, linear_rows, qwen2_rows

BINS, WIDTH = 16, 24


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    audio: AudioEncoderConfig
    text: DecoderConfig
    audio_token_id: tuple[int, ...]

    @classmethod
    def from_hf(cls, values):
        audio = AudioEncoderConfig(BINS, 0, 1, 1, BINS, 3000)
        return cls(
            audio,
            picked(DecoderConfig, values["deep"] | {"rope_theta": 1e4}),
            tuple(values["deep"]["audio_ids"]),
        )


class Toy(AudioLanguageModel):
    """Four frames are one embedding; a clip has a row of ones before it and a row of twos behind."""

    config_class = ToyConfig

    def __init__(self, config, *, dtype, lora=None):
        super().__init__(config, dtype=dtype, lora=lora)
        self.project = Linear(BINS, WIDTH, bias=False, dtype=dtype)

    def encode_audio(self, input_features, feature_lengths):
        clips, bins, frames = input_features.shape
        frames_of = jnp.arange(frames)[None] < feature_lengths[:, None]
        x = jnp.where(frames_of[:, None], input_features, 0).reshape(clips, bins, frames // 4, 4).mean(-1)
        rows = jnp.pad(self.project(jnp.swapaxes(x, 1, 2)), [(0, 0), (1, 1), (0, 0)], constant_values=1.0)
        end = 1 + ((feature_lengths - 1) // 2 - 1) // 2 + 1
        return jnp.where(jnp.arange(rows.shape[1])[None, :, None] == end[:, None, None], 2.0, rows)


def toy_prompt(system, clips, text):
    audio = "<|audio_bos|><|AUDIO|><|audio_eos|>" * clips
    return [f"<|im_start|>user\n{audio}", f"{text}<|im_end|>", "\n<|im_start|>assistant\n"]


def toy_table(config, values, names):
    layers = "deep.layers."
    rows = qwen2_rows("deep.", ("language_model",), config.text.num_hidden_layers)
    rows += [
        Row("head.weight", ("language_model", "lm_head")),
        *linear_rows("project", ("project",), bias=False),
    ]
    return WeightTable(
        rows=tuple(rows),
        linears={name: f"{layers}{{i}}.{module}" for name, module in DECODER_MODULES.items()},
        embedding="deep.embed_tokens.weight",
        head="head.weight",
        layers=layers,
        layouts={"whole4": Layout(layers, "Toy", "toys")},
        layers_pattern=r"deep\.layers\.",
        transformers_class="Toy",
        carried=r"mouth\.",
        tied_at=(("deep",),),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Registers the model and writes a folder of it, with tensors of a mouth that is not computed."""
    monkeypatch.setitem(ARCHITECTURES, "toy", "toy")
    parts = {
        "inputs": {
            "FORMAT": PromptFormat(
                "<|AUDIO|>",
                toy_prompt,
                modes=("audio_text", "text_only"),
                stop_tokens=("<|im_end|>",),
                model_values=lambda values: values["deep"],
                mel_config=lambda folder, values: MelConfig(
                    num_mel_bins=BINS, max_seconds=9, partial_frame=False, extra_tokens=2
                ),
            )
        },
        "models": {"MODEL": Toy},
        "weights": {"weight_table": toy_table},
    }
    for room, content in parts.items():
        module = types.ModuleType(f"rrs_jax.{room}.toy")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "base"
    path.mkdir()
    write_tokenizer(path)
    added = json.loads((path / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    text = dict(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=max(ids.values()) + 1,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        audio_ids=[ids[name] for name in ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")],
    )
    values = {"model_type": "toy", "deep": text}
    (path / "config.json").write_text(json.dumps(values))
    shapes = jax.eval_shape(lambda: Toy(ToyConfig.from_hf(values), dtype=jnp.float32))
    rng, tensors = np.random.default_rng(0), {"mouth.tongue": np.arange(5.0, dtype=np.float32)}
    for row in toy_table(ToyConfig.from_hf(values), values, ()).rows:
        leaf = shapes
        for name in row.path:
            leaf = getattr(leaf, name)
        shape = leaf.shape[1:] if row.layers else leaf.shape
        for name in row.names():
            tensors[name] = np.ascontiguousarray(row.convert(rng.normal(size=shape).astype(np.float32) * 0.3))
    save_file(path / "model.safetensors", tensors, {"format": "pt"})
    return path


def test_from_sound_to_representations_with_the_encoders_own_rows(folder):
    rng = np.random.default_rng(1)
    sounds = [rng.normal(size=samples).astype(np.float32) * 0.1 for samples in (3_999, 8_000)]
    model = rrs_jax.load_model(folder)
    batch = rrs_jax.make_batch(model, sounds, "Hi")
    counts = [
        ((samples // 160 - 1) // 2 - 1) // 2 + 3 for samples in (3_999, 8_000)
    ]  # floors, and two rows more
    index = np.asarray(batch.batch.audio_index)
    assert [(row >= 0).sum() for row in index][:2] == counts
    bank = np.asarray(batch.audio_bank)
    for row, sound in zip(index, sounds, strict=False):
        rows = bank[row[row >= 0]]
        assert np.all(rows[0] == 1) and np.all(rows[-1] == 2)
        features, frames = log_mel(sound, model.processor.mel)
        kernel = np.asarray(model.module.project.kernel[...])
        np.testing.assert_allclose(rows[1], features[:, :4].mean(1) @ kernel, rtol=1e-4, atol=1e-5)
        assert frames == len(sound) // 160
    assert np.isfinite(rrs_jax.extract_reps(model, batch)).all()


def test_a_mode_that_the_model_lacks_is_refused_in_a_sentence(folder):
    processor = rrs_jax.load_model(folder).processor
    with pytest.raises(UserError, match="audio alone, for which this model was not made"):
        processor.encode(None, [5])
    config = default_config()
    assert modes_of(config, processor.prompt_format.modes) == ("audio_text", "text_only")
    config.evaluate.modes = ("audio_only",)
    with pytest.raises(
        UserError,
        match="evaluate.modes: this model has no audio_only mode; choose among audio_text, text_only",
    ):
        modes_of(config, processor.prompt_format.modes)


def test_pieces_of_a_prompt_are_tokenised_apart(folder):
    """A line break at the text's start does not join that of the turn before it."""
    processor = rrs_jax.load_model(folder).processor
    ids = processor.encode("\n\nHi")
    plain = [*processor.tokenizer("user\n")["input_ids"], *processor.tokenizer("\n\nHi")["input_ids"]]
    assert ids[1 : 1 + len(plain)] == plain
    assert processor.eos_token_ids[-1] == processor.special_tokens["<|im_end|>"]


def test_export_keeps_what_is_not_loaded(folder, tmp_path):
    model = load_weights(folder, lora=LoRAConfig(rank=2, targets=None))
    assert len(model.lora.config.targets) == 7
    for target in model.lora.config.targets:
        pair = model.lora.pair(target)
        pair.lora_b.set_value(jnp.ones(pair.lora_b.shape) * 0.1)
    export_merged(model, folder, tmp_path / "merged")
    before, after = read_folder(folder), read_folder(tmp_path / "merged")
    assert before["mouth.tongue"].raw() == after["mouth.tongue"].raw() and before.keys() == after.keys()
    values = json.loads((tmp_path / "merged/config.json").read_text())
    assert values["deep"]["tie_word_embeddings"] is False and "tie_word_embeddings" not in values
    batch = collate([([5, 6, 7], [], [])], 8, model.config.audio_token_id)
    again = load_weights(tmp_path / "merged")
    bank = jnp.zeros((1, WIDTH))
    np.testing.assert_allclose(
        again.representations(batch, bank), model.representations(batch, bank), rtol=1e-4, atol=1e-5
    )
    export_adapter(model, folder, tmp_path / "adapter", base_name="toy")


def test_target_modules_spells_paths_out_where_a_last_name_has_two_meanings(folder):
    config = ToyConfig.from_hf(json.loads((folder / "config.json").read_text()))
    paths = {"attn_c_proj": "attn.c_proj", "w1": "mlp.w1", "c_proj": "mlp.c_proj"}
    linears = {name: f"deep.layers.{{i}}.{path}" for name, path in paths.items()}
    table = dataclasses.replace(toy_table(config, {}, ()), linears=linears)

    def pattern(*targets):
        return adapter_config(LoRAConfig(targets=targets), table, range(2), "base")["target_modules"]

    assert pattern("attn_c_proj", "w1").endswith(r"\.(attn\.c_proj|mlp\.w1)")
    assert pattern("attn_c_proj", "w1", "c_proj").endswith(r"\.[a-z_]+\.(c_proj|w1)")
