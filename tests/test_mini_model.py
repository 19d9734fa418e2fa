"""The mini's base folder and the bridge that is merged into it."""

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.mini_files import VOCAB_SIZE, WIDTH, convert, small_decoder, small_encoder, write_files
from rrs_jax.errors import UserError
from rrs_jax.mini import base, model, sources
from rrs_jax.weights import safetensors_io


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
    """A cache whose base comes from the synthetic files, under their own sums."""
    for kind, name in (("DECODER", "qwen.gguf"), ("ENCODER", "whisper.bin")):
        digest = hashlib.sha256((files / name).read_bytes()).hexdigest()
        monkeypatch.setattr(
            sources, kind, sources.Payload(name, digest, getattr(sources, kind).parts, (name,))
        )
    monkeypatch.setattr(base, "NEEDED_BYTES", 1_000_000)
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
    folder = base.ensure_base()
    assert folder == cache / "base" and base.source_of(folder)["source"] == "index"
    assert base.source_of(folder)["decoder"]["licence"] == "Apache-2.0"
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert base.ensure_base() == folder and (folder / "model.safetensors").stat().st_mtime_ns == made

    bridge = write_bridge(tmp_path / "bridge")
    mini = model.ensure_mini(bridge=tmp_path / "bridge")
    assert model.ensure_mini(bridge=tmp_path / "bridge") == mini and mini.name.startswith("mini-")
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
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "base", mini.name]

    bridge = write_bridge(
        tmp_path / "bridge",
        **{"audio_tower.layers.0.fc1.lora_A.weight": None, "audio_tower.layers.0.fc1.lora_B.weight": None},
    )
    assert model.ensure_mini(bridge=tmp_path / "bridge") != mini


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


def test_no_bridge_says_how_to_train_one(tmp_path):
    with pytest.raises(UserError, match="python -m rrs_jax.mini.train_bridge"):
        model.ensure_mini(bridge=tmp_path)


def test_a_failed_conversion_leaves_no_base_and_the_next_run_cleans_up(cache, files, monkeypatch):
    monkeypatch.setattr(base, "write_tokenizer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        base.ensure_base()
    assert not list(cache.glob("*base*"))
    left = cache / f".base.killed{base.UNFINISHED}"
    left.mkdir()
    with base.locked(cache):
        assert not left.exists()


def test_too_little_space_is_said_before_anything_is_fetched(cache, monkeypatch):
    monkeypatch.setattr(base, "NEEDED_BYTES", 10**18)
    with pytest.raises(UserError, match="GB are free and mini's base weights need"):
        base.ensure_base()


def test_a_source_that_is_no_folder_is_refused(cache, monkeypatch):
    monkeypatch.setenv(sources.SOURCE_VARIABLE, "no/such/folder")
    with pytest.raises(UserError, match="RRS_JAX_MINI_SOURCE=no/such/folder: is no folder"):
        base.ensure_base()
