"""A small model's base folder and the bridge that is merged into it."""

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.mini_files import VOCAB_SIZE, WIDTH, convert, small_decoder, small_encoder, write_files
from rrs_jax.errors import UserError
from rrs_jax.mini import base, measure, model, sources
from rrs_jax.mini.heard_model import load_heard
from rrs_jax.mini.model_table import MODELS
from rrs_jax.weights import safetensors_io
from rrs_jax.weights.named_models import NAMED_MODELS


@pytest.fixture(scope="module")
def decoder():
    return small_decoder()


@pytest.fixture(scope="module")
def encoder():
    return small_encoder()


@pytest.fixture(scope="module")
def files(tmp_path_factory, decoder, encoder):
    folder = tmp_path_factory.mktemp("files")
    write_files(folder, decoder, encoder)
    return folder


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    return convert(files, tmp_path_factory.mktemp("cache") / "base")


@pytest.fixture
def cache(files, tmp_path, monkeypatch):
    """A cache whose models are both made of the synthetic files, under their own sizes and sums."""
    for name, real in MODELS.items():
        parts = {}
        for role, file in (("decoder", "qwen.gguf"), ("encoder", "whisper.bin")):
            content, component = (files / file).read_bytes(), getattr(real, role)
            payload = replace(
                component.payload,
                name=file,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                patterns=(file,),
            )
            parts[role] = replace(component, payload=payload)
        monkeypatch.setitem(MODELS, name, replace(real, **parts, folder_bytes=1_000_000))
    monkeypatch.setenv(sources.SOURCE_VARIABLE, str(files))
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_bridge(folder: Path, **changes) -> dict[str, np.ndarray]:
    """Projector in bfloat16-exact values, one decoder and one encoder pair, over two files; rank 4, alpha
    8."""
    generator = np.random.default_rng(5)
    q_proj, fc1 = "language_model.model.layers.1.self_attn.q_proj", "audio_tower.layers.0.fc1"
    shapes = {
        "multi_modal_projector.linear.weight": (WIDTH, 48),
        "multi_modal_projector.linear.bias": (WIDTH,),
        f"{q_proj}.lora_A.weight": (4, WIDTH),
        f"{q_proj}.lora_B.weight": (WIDTH, 4),
        f"{fc1}.lora_A.weight": (4, 48),
        f"{fc1}.lora_B.weight": (80, 4),
    } | changes
    tensors = {
        name: generator.standard_normal(shape).astype(np.float16) for name, shape in shapes.items() if shape
    }
    folder.mkdir(exist_ok=True)
    items = list(tensors.items())
    for number, part in enumerate((items[:3], items[3:]), start=1):
        metadata = {"lora_alpha": "8.0", "rank": "4"}
        save_file(dict(part), folder / f"bridge-0000{number}-of-00002.safetensors", metadata)
    return tensors


def test_base_is_made_once_and_mini_merges_the_bridge(cache, tmp_path):
    folder = base.ensure_base("mini")
    assert folder == cache / "mini" / "base" and base.source_of(folder)["source"] == "index"
    assert base.source_of(folder)["decoder"]["licence"] == "Apache-2.0"
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert base.ensure_base("mini") == folder and (folder / "model.safetensors").stat().st_mtime_ns == made

    bridge = write_bridge(tmp_path / "bridge")
    mini = model.ensure_model("mini", bridge=tmp_path / "bridge")
    assert model.ensure_model("mini", bridge=tmp_path / "bridge") == mini and mini.name.startswith("mini-")
    before, after = load_file(folder / "model.safetensors"), load_file(mini / "model.safetensors")
    expected = dict(before)
    for name in ("multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias"):
        expected[name] = bridge[name]
    for name in ("language_model.model.layers.1.self_attn.q_proj", "audio_tower.layers.0.fc1"):
        lora_a, lora_b = (bridge[f"{name}.lora_{letter}.weight"].astype(np.float32) for letter in "AB")
        expected[f"{name}.weight"] = (before[f"{name}.weight"] + 8 / 4 * (lora_b @ lora_a)).astype(np.float16)
    assert expected.keys() == after.keys()
    assert [name for name in after if not np.array_equal(after[name], expected[name])] == []
    assert {file.name for file in mini.iterdir()} == {file.name for file in folder.iterdir()}
    assert base.source_of(mini)["bridge"] == [f"bridge-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "base", mini.name]

    bridge = write_bridge(
        tmp_path / "bridge",
        **{"audio_tower.layers.0.fc1.lora_A.weight": None, "audio_tower.layers.0.fc1.lora_B.weight": None},
    )
    assert model.ensure_model("mini", bridge=tmp_path / "bridge") != mini


def test_a_trained_bridge_is_measured_by_its_folder(cache, tmp_path, capsys):
    bridge = write_bridge(tmp_path / "bridge")
    options = argparse.Namespace(model="mini", bridge=str(tmp_path / "bridge"), dtype="float32")
    kernel = load_heard(options, []).model.multi_modal_projector.kernel[...]
    np.testing.assert_array_equal(kernel, bridge["multi_modal_projector.linear.weight"].T)
    assert measure.main([f"--model={tmp_path}", f"--bridge={tmp_path / 'bridge'}"]) == 2
    assert "is no small real model; there are mini and small" in capsys.readouterr().err


def test_small_has_a_cache_and_a_base_of_its_own(cache):
    mini, small = base.ensure_base("mini"), base.ensure_base("small")
    assert (mini, small) == (cache / "mini" / "base", cache / "small" / "base")
    assert base.source_of(small)["decoder"]["model"] == "Qwen/Qwen2.5-Coder-1.5B-Instruct"
    assert len(base.source_of(small)["packages"]) == 24


def test_a_base_in_the_cache_folder_itself_is_not_made_again(cache):
    cache.mkdir()
    base.ensure_base("mini", cache)
    made = (cache / "base" / "model.safetensors").stat().st_mtime_ns
    assert base.ensure_base("mini") == cache / "base"
    assert (cache / "base" / "model.safetensors").stat().st_mtime_ns == made
    assert base.model_cache(MODELS["small"]) == cache / "small"  # another model's


def test_a_name_that_no_model_has_is_refused(cache):
    with pytest.raises(UserError, match="smal: is no small real model; there are mini and small"):
        base.ensure_base("smal")


def test_every_named_model_is_in_the_table():
    assert tuple(MODELS) == NAMED_MODELS


def test_a_bridge_may_hold_the_whole_encoder_and_pairs_in_any_number_of_files(converted, tmp_path):
    before = load_file(converted / "model.safetensors")
    encoder = [name for name in before if name.startswith("audio_tower.")]
    for part in ("conv1.weight", "conv2.bias", "layers.0.self_attn.q_proj.bias", "layer_norm.weight"):
        assert f"audio_tower.{part}" in encoder
    generator = np.random.default_rng(6)
    tensors = {
        name: generator.standard_normal(before[name].shape).astype(np.float16)
        for name in (*encoder, "multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias")
    }
    o_proj = "language_model.model.layers.0.self_attn.o_proj"
    tensors[f"{o_proj}.lora_A.weight"] = generator.standard_normal((2, WIDTH)).astype(np.float16)
    tensors[f"{o_proj}.lora_B.weight"] = generator.standard_normal((WIDTH, 2)).astype(np.float16)
    names = list(tensors)
    for number in range(5):
        save_file(
            {name: tensors[name] for name in names[number::5]},
            tmp_path / f"bridge-0000{number + 1}-of-00005.safetensors",
            {"lora_alpha": "4", "rank": "2"},
        )
    model.merge_bridge(converted, model.bridge_files(tmp_path), tmp_path / "merged")
    after = load_file(tmp_path / "merged/model.safetensors")
    product = tensors[f"{o_proj}.lora_B.weight"].astype(np.float32) @ tensors[f"{o_proj}.lora_A.weight"]
    added = (before[f"{o_proj}.weight"] + 2 * product).astype(np.float16)
    expected = before | {name: tensors[name] for name in names[:-2]} | {f"{o_proj}.weight": added}
    assert expected.keys() == after.keys()
    assert [name for name in after if not np.array_equal(after[name], expected[name])] == []


def test_a_bridge_in_bfloat16(converted, tmp_path):
    bias = np.arange(WIDTH, dtype=np.float32).astype(ml_dtypes.bfloat16)
    safetensors_io.save_file(tmp_path / "bridge-1.safetensors", {"multi_modal_projector.linear.bias": bias})
    model.merge_bridge(converted, model.bridge_files(tmp_path), tmp_path / "mini")
    merged = load_file(tmp_path / "mini/model.safetensors")
    assert np.array_equal(merged["multi_modal_projector.linear.bias"], np.arange(WIDTH))


def test_all_faults_of_a_bridge_are_listed(converted, tmp_path):
    write_bridge(
        tmp_path,
        **{
            "multi_modal_projector.linear.bias": (3,),
            "audio_tower.layers.9.fc1.weight": (2, 2),
            "language_model.model.embed_tokens.lora_A.weight": (4, WIDTH),
            "language_model.model.embed_tokens.lora_B.weight": (VOCAB_SIZE, 4),
            "audio_tower.layers.0.fc1.lora_B.weight": None,
            "language_model.model.layers.1.self_attn.q_proj.lora_A.weight": (5, WIDTH),
        },
    )
    with pytest.raises(UserError) as error:
        model.merge_bridge(converted, model.bridge_files(tmp_path), tmp_path / "mini")
    for fault in (
        "linear.bias has the shape (3,)",
        "layers.9.fc1.weight is no tensor",
        "embed_tokens.weight is no tensor",
        "fc1 has only one of",
        "q_proj has LoRA shapes (5, 64)",
        "train_bridge",
    ):
        assert fault in str(error.value)
    assert not (tmp_path / "mini").exists()


def test_no_bridge_says_how_to_train_one(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "make_base", None)  # nothing is fetched before it is found out
    with pytest.raises(UserError, match="holds no bridge .*python -m rrs_jax.mini.train_bridge"):
        model.ensure_model("mini", bridge=tmp_path)


def test_a_failed_conversion_leaves_no_base_and_the_next_run_cleans_up(cache, files, monkeypatch):
    monkeypatch.setattr(base, "write_tokenizer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        base.ensure_base("mini")
    assert not list(cache.glob("mini/*base*"))
    left = cache / "mini" / f".base.killed{base.UNFINISHED}"
    left.mkdir()
    with base.locked(cache / "mini", "mini"):
        assert not left.exists()


def test_too_little_space_is_said_before_anything_is_fetched(cache, monkeypatch):
    monkeypatch.setitem(MODELS, "mini", replace(MODELS["mini"], folder_bytes=10**18))
    with pytest.raises(UserError, match="GB are free and mini needs"):
        base.ensure_base("mini")


def test_a_source_that_is_no_folder_is_refused(cache, monkeypatch):
    monkeypatch.setenv(sources.SOURCE_VARIABLE, "no/such/folder")
    with pytest.raises(UserError, match="RRS_JAX_MINI_SOURCE=no/such/folder: is no folder"):
        base.ensure_base("mini")
