"""Model folders as transformers reads them, whatever else lies in them, and weights that are no numbers."""

import itertools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from helpers.qwen2_audio import make_reference
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.weights import safetensors_io
from rrs_jax.weights.export import export_merged
from rrs_jax.weights.hub import _has_weights
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import read_folder

TENSOR = "language_model.model.layers.1.mlp.down_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders `whole` and `shards` of one model, `new_whole` and `new_shards` of another of its shape."""
    root, model = tmp_path_factory.mktemp("saved"), make_reference()
    for name in ("", "new_"):
        model.save_pretrained(root / f"{name}whole")
        model.save_pretrained(root / f"{name}shards", max_shard_size="60KB")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.25)
    return root


def bits(folder) -> bytes:
    return read_folder(folder)[TENSOR].raw()


def their_bits(folder) -> bytes | None:
    """Bytes of the tensor as transformers loads it; None where it refuses the folder."""
    try:
        model = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    except OSError:
        return None
    state = model.state_dict()
    return state[next(name for name in state if name.endswith(TENSOR[-31:]))].numpy().tobytes()


PARTS = ("new_whole", "shards", "index", "one shard", "adapter", "bin", "consolidated")


CHOICES = [choice for count in (1, 2, 3) for choice in itertools.combinations(PARTS, count)]


@pytest.mark.parametrize("parts", [c for c in CHOICES if {"new_whole", "shards"} & {*c}], ids="+".join)
def test_the_same_weights_are_read_as_by_transformers(saved, tmp_path, parts, capsys):
    folder = tmp_path / "model"
    shutil.copytree(saved / "whole", folder)
    (folder / "model.safetensors").unlink()
    for part in parts:
        if part in ("new_whole", "shards"):
            shutil.copytree(saved / part, folder, dirs_exist_ok=True)
        elif part == "index":
            shutil.copy(saved / "shards" / INDEX, folder)
        elif part == "one shard":
            shutil.copy(next((saved / "new_shards").glob("model-0*")), folder)
        elif part == "adapter":
            (folder / "adapter_model.safetensors").write_bytes(b"not of the model")
        elif part == "consolidated":
            shutil.copy(saved / "whole" / "model.safetensors", folder / "consolidated.safetensors")
        else:
            torch.save({}, folder / "pytorch_model.bin")
    safetensors_io._say_once.cache_clear()
    theirs = their_bits(folder)
    assert theirs is not None and bits(folder) == theirs
    both = {"new_whole"} < {*parts} and {"shards", "index"} & {*parts}
    assert ("is read, as by transformers" in capsys.readouterr().err) == bool(both)
    assert _has_weights(folder)


def test_shards_alone_are_read_and_two_models_without_an_index_are_not(saved, tmp_path):
    folder = shutil.copytree(saved / "shards", tmp_path / "model")
    (folder / INDEX).unlink()
    assert bits(folder) == bits(saved / "shards")
    for file in (saved / "new_shards").glob("model-0*"):
        shutil.copy(file, folder / f"new-{file.name}")
    with pytest.raises(UserError, match="stand in model-.* and in new-model-.*; delete the files"):
        read_folder(folder)


def test_a_tensor_in_two_shards_is_the_last_ones_as_in_transformers(saved, tmp_path, capsys):
    folder = shutil.copytree(saved / "shards", tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    other = safetensors.torch.load_file(saved / "new_whole" / "model.safetensors")[TENSOR]
    safetensors.torch.save_file({TENSOR: other}, folder / "z.safetensors", {"format": "pt"})
    index["weight_map"][TENSOR] = "z.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert bits(folder) == their_bits(folder) == bits(saved / "new_whole")
    assert "the last file is read, as by transformers" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["whole", "shards"])
@pytest.mark.parametrize("chain", [1, 2])
def test_a_hub_snapshot_of_links_is_a_folder(saved, tmp_path, kind, chain):
    """As the hub's cache has it: the snapshot's files are relative links to blobs without endings."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((saved / kind).iterdir())):
        shutil.copy(file, blobs / f"{number:064x}")
        target = f"{number:064x}"
        if chain == 2:
            os.symlink(target, blobs / f"link{number}")
            target = f"link{number}"
        os.symlink(f"../../blobs/{target}", snapshot / file.name)
    os.symlink(snapshot, tmp_path / "model")
    for folder in (snapshot, tmp_path / "model"):
        assert bits(folder) == their_bits(folder) == bits(saved / kind)
        load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))


def test_an_export_has_no_index_that_is_not_its_own(saved, tmp_path):
    folder = shutil.copytree(saved / "new_whole", tmp_path / "model")
    shutil.copy(saved / "shards" / INDEX, folder)
    model = load_weights(folder, lora=LoRAConfig(rank=1), mesh=make_mesh(devices=jax.devices()[:1]))
    export_merged(model, folder, tmp_path / "merged")
    assert not (tmp_path / "merged" / INDEX).exists()
    assert bits(tmp_path / "merged") == bits(folder) == their_bits(tmp_path / "merged")


VALUES = (float("nan"), float("inf"), float("-inf"))
TENSORS = (
    TENSOR,
    "language_model.model.layers.0.self_attn.q_proj.bias",
    "language_model.model.norm.weight",
    "language_model.lm_head.weight",
    "audio_tower.conv1.weight",
    "audio_tower.layers.1.self_attn_layer_norm.bias",
    "multi_modal_projector.linear.weight",
)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("value", VALUES)
def test_a_number_that_is_none_is_named_with_its_tensor(saved, tmp_path, name, value):
    folder = shutil.copytree(saved / "whole", tmp_path / "model")
    break_tensor(folder, name, value)
    with pytest.raises(UserError, match=r"NaN or infinite numbers in 1 of the tensors") as refused:
        load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))
    assert f"({name})" in str(refused.value)


@pytest.mark.parametrize("quantize", ["none", "int8", "float8"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("on_host", [0, 2**40])
@pytest.mark.parametrize("devices", [1, 8])
def test_in_every_dtype_and_sharding(saved, tmp_path, monkeypatch, quantize, dtype, on_host, devices):
    monkeypatch.setattr("rrs_jax.weights.finite.ON_HOST", on_host)
    mesh = make_mesh(1, -1, 1, devices=jax.devices()[:devices])
    load_weights(saved / "whole", dtype=dtype, quantize=quantize, mesh=mesh)
    folder = shutil.copytree(saved / "whole", tmp_path / "model")
    break_tensor(folder, TENSOR, float("nan"))
    break_tensor(folder, "audio_tower.conv2.bias", float("inf"))
    with pytest.raises(UserError) as refused:
        load_weights(folder, dtype=dtype, quantize=quantize, mesh=mesh)
    assert "numbers in 2 of the tensors" in str(refused.value) and TENSOR in str(refused.value)
    assert "audio_tower.conv2.bias" in str(refused.value) and "layers.0" not in str(refused.value)


def break_tensor(folder, name: str, value: float) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors[name].view(-1)[np.random.default_rng(0).integers(tensors[name].numel())] = value
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_many_tensors_are_named_in_part(saved, tmp_path):
    folder = shutil.copytree(saved / "whole", tmp_path / "model")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    head = "language_model.lm_head.weight"  # which would count as tied if it were the embedding's bytes
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items() if name != head}
    safetensors.torch.save_file(
        broken | {head: tensors[head]}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=rf"in {len(broken)} of the tensors .*{len(broken) - 8} more\)"):
        load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))
