"""Loading: every dtype and layout bit for bit, on one device and on a mesh, and what is said of damaged
folders."""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from flax import nnx

from helpers.qwen2_audio import make_reference, small_config
from rrs_jax.distributed.mesh import make_mesh, parameter_sharding
from rrs_jax.errors import Damaged, UserError
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from rrs_jax.weights.load import abstract_model, load_weights, read_config, resolve_folder, weight_table
from rrs_jax.weights.safetensors_io import load_file, read_folder, save_file
from rrs_jax.weights.table import Row

DTYPES = {torch.float32: jnp.float32, torch.bfloat16: jnp.bfloat16, torch.float16: jnp.float16}
HEAD = "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"


def load(folder, **options) -> Qwen2Audio:
    return load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]), **options)


def parameters(model) -> dict[tuple, jax.Array]:
    return {tuple(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def tensors_of(row: Row, array: jax.Array) -> dict[str, bytes]:
    """One of our parameters as the bytes that the row's tensors have on disk."""
    array = np.asarray(array)
    parts = [array] if row.layers is None else list(array)
    return {
        name: np.ascontiguousarray(row.convert(part)).tobytes()
        for name, part in zip(row.names(), parts, strict=True)
    }


@pytest.mark.parametrize("shards", [1, 5], ids=["one file", "many shards"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_devices", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_round_trip_is_bit_identical(tmp_path, monkeypatch, dtype, shards, by_devices):
    monkeypatch.setattr("rrs_jax.weights.load._turned_by_devices", lambda: by_devices)
    monkeypatch.setattr("rrs_jax.weights.load.TILE", 20)  # matrices of several tiles, the last ones cut
    make_reference().to(dtype).save_pretrained(tmp_path, max_shard_size="1GB" if shards == 1 else "60KB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards > 1)
    model = load(tmp_path, dtype=DTYPES[dtype])
    ours, back = parameters(model), {}
    rows = weight_table(model.config, {"model_type": "qwen2_audio"}, ()).rows
    for row in rows:
        assert ours[row.path].dtype == DTYPES[dtype]
        back |= tensors_of(row, ours[row.path])
    assert back == {name: entry.raw() for name, entry in read_folder(tmp_path).items()}
    assert ours.keys() == {row.path for row in rows}


def test_values_are_cast_as_torch_casts_them(folder):
    """Float32 on disk becomes bfloat16 on the device: rounded to nearest even, once."""
    model = load(folder, dtype=jnp.bfloat16)
    ours = {
        name: data
        for row in weight_table(model.config, {"model_type": "qwen2_audio"}, ()).rows
        for name, data in tensors_of(row, parameters(model)[row.path]).items()
    }
    for shard in folder.glob("*.safetensors"):
        for name, tensor in safetensors.torch.load_file(shard).items():
            assert ours[name] == tensor.bfloat16().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("by_devices", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_sharded_loading_gives_the_same_arrays(folder, monkeypatch, by_devices):
    monkeypatch.setattr("rrs_jax.weights.load._turned_by_devices", lambda: by_devices)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    lora = LoRAConfig(rank=3)
    whole, cut = load(folder, lora=lora), load_weights(folder, mesh=mesh, lora=lora)
    assert parameters(whole).keys() == parameters(cut).keys()
    for path, array in parameters(cut).items():
        np.testing.assert_array_equal(array, parameters(whole)[path])
        assert array.sharding == parameter_sharding(mesh, ".".join(map(str, path)), array.shape)
    kernel = cut.language_model.layers.q_proj.kernel[...]
    assert kernel.addressable_shards[0].data.shape == (3, 24, 24) and len(kernel.addressable_shards) == 8


def test_lora_starts_as_in_peft(tmp_path):
    """A uniform in ±1/sqrt(in), its spread as PEFT's own; B zero; another seed gives another A."""
    reference = make_reference(hidden_size=96, intermediate_size=200)
    reference.save_pretrained(tmp_path)
    config = LoRAConfig(rank=32)
    model = load(tmp_path, lora=config)
    pattern = r".*language_model.*\.(" + "|".join(config.targets) + ")"
    theirs = dict(
        peft.get_peft_model(reference, peft.LoraConfig(r=32, target_modules=pattern)).named_parameters()
    )
    for target in config.targets:
        pair = model.lora.pair(target)
        ours = np.asarray(pair.lora_a[...])
        a = (
            torch.stack([value for name, value in theirs.items() if f"{target}.lora_A" in name])
            .detach()
            .numpy()
        )
        assert ours.transpose(0, 2, 1).shape == a.shape and ours.dtype == np.float32
        bound = ours.shape[1] ** -0.5
        for sample in (ours, a):
            assert 0.99 * bound < np.abs(sample).max() <= bound
            assert abs(sample.mean()) < 0.05 * bound
            assert abs(sample.var() / (bound**2 / 3) - 1) < 0.05
        assert len(np.unique(ours)) > 0.99 * ours.size
        assert not np.asarray(pair.lora_b[...]).any()
        assert not any(value.any() for name, value in theirs.items() if f"{target}.lora_B" in name)
    again, other = load(tmp_path, lora=config), load(tmp_path, lora=config, seed=1)
    lora_a = [np.asarray(loaded.lora.pair("q_proj").lora_a[...]) for loaded in (model, again, other)]
    assert np.array_equal(lora_a[0], lora_a[1]) and not np.array_equal(lora_a[0], lora_a[2])
    assert len(jax.tree.leaves(nnx.state(model, LoRAParam))) == 2 * len(config.targets)


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Fails the test where a parameter is made, that is, before the folder was found good."""

    def fail(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(jax, "make_array_from_callback", fail)


@pytest.fixture
def single(tmp_path):
    """An own copy of a folder with one shard, and its tensors."""
    make_reference().save_pretrained(tmp_path / "model")
    return tmp_path / "model", safetensors.torch.load_file(tmp_path / "model/model.safetensors")


def rewrite(folder, tensors) -> None:
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_missing_surplus_misshapen_and_quantised_tensors_are_named_together(single, nothing_is_read):
    folder, tensors = single
    del tensors[NORM], tensors["audio_tower.layers.1.fc2.bias"]
    tensors["language_model.model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 72)
    tensors["language_model.model.layers.3.mlp.up_proj.weight"] = torch.zeros(72, 48)
    tensors["multi_modal_projector.linear.bias"] = torch.zeros(48, dtype=torch.int8)
    rewrite(folder, tensors)
    with pytest.raises(UserError) as error:
        load(folder)
    for problem in (
        f"{NORM} is missing",
        "audio_tower.layers.1.fc2.bias is missing",
        "layers.2.mlp.up_proj.weight has the shape (48, 72) in place of (72, 48)",
        "language_model.model.layers.3.mlp.up_proj.weight is surplus",
        "multi_modal_projector.linear.bias has the dtype int8",
    ):
        assert problem in str(error.value)
    assert str(folder) in str(error.value)


def test_a_missing_head_is_named_unless_the_config_ties_it(single, nothing_is_read):
    folder, tensors = single
    del tensors[HEAD]
    rewrite(folder, tensors)
    with pytest.raises(UserError, match=f"{HEAD} is missing"):
        load(folder)
    values = read_config(folder)
    values["text_config"]["tie_word_embeddings"] = True
    model, _ = abstract_model(values, jnp.float32, None, read_folder(folder))
    assert model.language_model.lm_head is None


def test_a_stored_head_counts_as_tied_only_if_every_byte_is_the_embeddings(tmp_path):
    values = json.loads(small_config(vocab_size=2500, hidden_size=6, num_attention_heads=1).to_json_string())
    embedding = np.random.default_rng(0).normal(size=(2500, 6)).astype(np.float32)
    head = embedding.copy()
    for last, tied in ((head[-1, -1], True), (np.nextafter(head[-1, -1], np.float32(9)), False)):
        head[-1, -1] = last
        save_file(
            tmp_path / "model.safetensors",
            {HEAD: head, "language_model.model.embed_tokens.weight": embedding},
        )
        model, _ = abstract_model(values, jnp.float32, None, read_folder(tmp_path))
        assert (model.language_model.lm_head is None) == tied


def test_truncated_shards_are_named_with_their_tensors(folder, tmp_path, nothing_is_read):
    shutil.copytree(folder, tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))[:2]
    last = []
    for shard in shards:
        names = {
            name: entry.end for name, entry in read_folder(folder).items() if entry.file.name == shard.name
        }
        last.append(max(names, key=names.get))
        shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(UserError) as error:
        load(tmp_path / "model")
    for shard, name in zip(shards, last, strict=True):
        assert f"{shard}: is cut short, tensor {name} ends at byte" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10\0\0\0",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"{a:}",
        struct.pack("<Q", 8) + b'{"a":{}}',
    ],
    ids=["empty", "short", "header beyond the end", "a list", "no JSON", "no offsets"],
)
def test_a_file_that_is_no_safetensors_file_is_named(single, content, nothing_is_read):
    folder, _ = single
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"model.safetensors: (is no safetensors file|tensor a has the offsets) .*download it again",
    ):
        load(folder)


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_named(single, nothing_is_read):
    folder, _ = single
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[NORM]["dtype"] = "F16"
    header[HEAD]["dtype"] = "F4"
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])
    with pytest.raises(UserError, match=rf"{NORM} has 192 bytes.*shape \(48,\) in F16") as error:
        load(folder)
    assert f"{HEAD} has the dtype F4, which is not supported" in str(error.value)


def test_folders_that_hold_no_model(single, tmp_path, nothing_is_read):
    folder, _ = single
    with pytest.raises(
        UserError, match="model.path: .*nowhere is no folder; give .* a hub id OWNER/NAME, or mini or small"
    ):
        resolve_folder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no config.json"):
        load(tmp_path)
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(UserError, match="holds no .*safetensors file"):
        load(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "whisper"}))
    with pytest.raises(UserError, match="config.json: model_type is 'whisper'; supported: .*qwen2_audio"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="config.json: (model_type is None|holds no JSON object)"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json, line 1: is not valid JSON"):
        load(folder)


def test_an_index_that_names_absent_shards(folder, tmp_path, nothing_is_read):
    shutil.copytree(folder, tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    with pytest.raises(UserError, match=f"the shards {shards[0].name}, {shards[2].name} are missing"):
        load(tmp_path / "model")
    (tmp_path / "model/model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="index.json: holds no weight_map"):
        load(tmp_path / "model")


def test_our_files_are_read_by_the_safetensors_package(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.normal(size=(3, 5)).astype(jnp.bfloat16),
        "a": rng.normal(size=7).astype(np.float16),
        "scalar": np.float32(2.5).reshape(()),
        "c": np.arange(6).reshape(2, 3).T,
    }
    save_file(tmp_path / "file.safetensors", arrays, {"format": "pt"})
    read = safetensors.torch.load_file(tmp_path / "file.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].double().numpy().tolist() == array.astype(np.float64).tolist()
        for ours in (read_folder(tmp_path)[name].array(), load_file(tmp_path / "file.safetensors")[0][name]):
            assert ours.dtype == array.dtype and ours.tolist() == array.tolist()
    assert load_file(tmp_path / "file.safetensors")[1] == {"format": "pt"}


def test_a_written_file_has_an_ordinary_files_rights(tmp_path):
    (tmp_path / "ordinary").touch()
    save_file(tmp_path / "file.safetensors", {"a": np.zeros(2)})
    assert (tmp_path / "file.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_whole_files_that_cannot_be_read_or_written_are_named(tmp_path):
    with pytest.raises(UserError, match="absent/file: cannot be written"):
        save_file(tmp_path / "absent" / "file", {"a": np.zeros(2)})
    with pytest.raises(UserError, match="absent: cannot be read"):
        load_file(tmp_path / "absent")
    (tmp_path / "damaged").write_bytes(b"{}")
    with pytest.raises(UserError, match="damaged: is no safetensors file"):
        load_file(tmp_path / "damaged")


def test_settings_that_are_not_computed_are_refused(folder, tmp_path):
    """Silently ignored, they would give other numbers than transformers."""
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"use_sliding_window": True, "hidden_act": "relu"}
    with pytest.raises(UserError, match="hidden_act.*use_sliding_window"):
        Qwen2AudioConfig.from_hf(values)


def test_a_written_file_is_the_same_bytes_each_time_and_known_by_its_sum(tmp_path):
    file, metadata = tmp_path / "file.safetensors", {name: name for name in "zyxwvu"}
    arrays = {
        "a": np.arange(6, dtype=np.int8).reshape(2, 3),
        "b": np.ones((2, 2)),
        "c": np.float32(1).reshape(()),
    }
    save_file(file, arrays, metadata)
    content = file.read_bytes()
    assert load_file(file)[1] == metadata
    save_file(file, dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    assert file.read_bytes() == content
    for at in (len(content) - 1, content.index(b'"z":"z"') + 5):  # a number, and a text
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(Damaged, match="file.safetensors: is damaged"):
            load_file(file)
