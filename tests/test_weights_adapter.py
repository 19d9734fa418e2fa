"""Adapters that PEFT itself has trained and saved, read by our loader: what PEFT computes, we compute."""

import json
import shutil

import chex
import jax
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

import rrs_jax
from helpers.qwen2_audio import reference_representations
from helpers.tensors import relative_error
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.weights.adapter import read_adapter
from rrs_jax.weights.export import export_adapter
from rrs_jax.weights.load import read_config

DECODER = r".*language_model.*layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"
SETTINGS = {
    "all linears": {"r": 4, "lora_alpha": 7, "target_modules": DECODER},
    "upper layer, two linears": {
        "r": 3, "lora_alpha": 8, "target_modules": r".*language_model.*layers\.1\.self_attn\.(q|v)_proj",
    },
    "ranks and scales of their own": {
        "r": 4, "lora_alpha": 8, "target_modules": DECODER,
        "rank_pattern": {"q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"q_proj": 32, r"layers\.1\.mlp\.up_proj": 3},
    },
    "rank-stabilised": {"r": 4, "lora_alpha": 2, "target_modules": DECODER, "use_rslora": True},
}  # fmt: skip


def base_model(folder):
    return transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder)


def trained(folder, steps: int = 4, **settings) -> peft.PeftModel:
    """A LoRA after some steps of PEFT's own training, with a next-token loss on random tokens."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base_model(folder), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    ids = torch.randint(3, 120, (4, 12))
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("name", SETTINGS)
def test_representations_of_a_peft_adapter_equal_transformers(whole_folder, sound_files, tmp_path, name):
    theirs = trained(whole_folder, **SETTINGS[name])
    theirs.save_pretrained(tmp_path / "adapter")
    expected = reference_representations(theirs, whole_folder, sound_files[:3], PROMPT_T)
    model = rrs_jax.load_model(whole_folder, adapter=tmp_path / "adapter")
    ours = rrs_jax.extract_reps(model, rrs_jax.make_batch(model, sound_files[:3], PROMPT_T))
    assert relative_error(ours, expected) < 1e-4
    before = reference_representations(base_model(whole_folder), whole_folder, sound_files[:3], PROMPT_T)
    assert relative_error(before, expected) > 1e-2


def test_an_adapter_goes_to_peft_and_back_bit_for_bit(whole_folder, tmp_path):
    """Ours to PEFT, saved by PEFT, and read again."""
    theirs = trained(whole_folder, r=4, lora_alpha=7, target_modules=DECODER)
    theirs.save_pretrained(tmp_path / "theirs")
    model = rrs_jax.load_model(whole_folder, adapter=tmp_path / "theirs")
    export_adapter(model.module, whole_folder, tmp_path / "ours", base_name=str(whole_folder))
    reloaded = peft.PeftModel.from_pretrained(base_model(whole_folder), tmp_path / "ours")
    reloaded.save_pretrained(tmp_path / "again")
    first, second = (read_adapter(tmp_path / name, read_config(whole_folder)) for name in ("theirs", "again"))
    chex.assert_trees_all_equal(first.pairs, second.pairs)
    assert first.config == second.config


def test_an_adapter_lies_sharded_over_a_mesh(whole_folder, sound_files, tmp_path):
    trained(whole_folder, r=4, lora_alpha=7, target_modules=DECODER).save_pretrained(tmp_path / "adapter")
    reps = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(data=2, fsdp=2, tensor=2)):
        model = rrs_jax.load_model(whole_folder, adapter=tmp_path / "adapter", mesh=mesh)
        reps.append(rrs_jax.extract_reps(model, rrs_jax.make_batch(model, sound_files[:2], PROMPT_T)))
    assert relative_error(reps[1], reps[0]) < 1e-5


@pytest.fixture(scope="module")
def saved(whole_folder, tmp_path_factory):
    """A PEFT adapter on all linears; each test changes a copy of it."""
    path = tmp_path_factory.mktemp("saved") / "adapter"
    trained(whole_folder, steps=1, r=2, lora_alpha=4, target_modules=DECODER).save_pretrained(path)
    return path


def refusal(folder, base) -> str:
    with pytest.raises(UserError) as error:
        read_adapter(folder, read_config(base))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("use_dora", True, "the adapter has DoRA, which scales each row of a weight too"),
        ("bias", "all", "trained biases (bias=all)"),
        ("lora_bias", True, "biases of its own"),
        ("modules_to_save", ["lm_head"], "whole modules (modules_to_save)"),
        ("peft_type", "IA3", "the type IA3"),
        ("init_lora_weights", "pissa_niter_4", "a start that changes the base's weights (pissa_niter_4)"),
        ("layer_replication", [[0, 2], [1, 2]], "repeated layers"),
        ("alpha_pattern", {"(": 8}, "alpha_pattern has no regular expression: ("),
        ("alpha_pattern", {"q_proj{99999999999}": 8}, "alpha_pattern has no regular expression"),
        ("alpha_pattern", {"(.|.)*x": 8}, "alpha_pattern repeats too much: (.|.)*x"),
        ("alpha_pattern", {".*" * 9 + "x": 8}, "alpha_pattern repeats too much"),
        ("alpha_pattern", {"(.|.)" * 40 + "x": 8}, "alpha_pattern repeats too much"),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused(saved, whole_folder, tmp_path, field, value, words):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {field: value}))
    assert words in refusal(folder, whole_folder)


def changed(saved, folder, change) -> None:
    shutil.copytree(saved, folder)
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")


def test_tensors_that_do_not_fit_are_named(saved, whole_folder, tmp_path):
    key = next(iter(sorted(safetensors.torch.load_file(saved / "adapter_model.safetensors"))))
    assert ".lora_A." in key

    def infinite(tensors):
        tensors[key][0, 0] = torch.inf

    def with_tensor(name, *shape):
        return lambda tensors: tensors.update({name: torch.zeros(shape)})

    tower = "base_model.model.audio_tower.layers.0.fc1.lora_A.weight"
    inputs = safetensors.torch.load_file(saved / "adapter_model.safetensors")[key].shape[1]
    for name, change, words in (
        ("half", lambda tensors: tensors.pop(key), "has only lora_B"),
        ("wide", with_tensor(key, 2, 7), "lora_A (2, 7) and lora_B"),
        ("thick", with_tensor(key, 3, inputs), "the ranks 3 and 2"),
        ("infinite", infinite, "numbers that are not finite"),
        ("tower", with_tensor(tower, 2, 4), "changes more than linears of the decoder"),
        ("empty", lambda tensors: tensors.clear(), "holds no tensor"),
    ):
        changed(saved, tmp_path / name, change)
        assert words in refusal(tmp_path / name, whole_folder), name


def test_a_folder_that_is_no_adapter_is_refused(saved, whole_folder, tmp_path):
    assert "holds no adapter_config.json; give a PEFT adapter's folder" in refusal(tmp_path, whole_folder)
    shutil.copy(saved / "adapter_config.json", tmp_path)
    assert "holds no adapter_model.safetensors" in refusal(tmp_path, whole_folder)
    with pytest.raises(UserError, match="adapter and lora are both given"):
        rrs_jax.load_model(whole_folder, adapter=saved, lora=rrs_jax.api.LoRAConfig())


def test_an_adapter_of_the_hub_is_fetched(saved, whole_folder, monkeypatch):
    fetched = []

    def snapshot_download(path, allow_patterns):
        fetched.append((path, allow_patterns))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    hub = read_adapter("OWNER/NAME", read_config(whole_folder))
    assert fetched == [("OWNER/NAME", ["adapter_config.json", "adapter_model.safetensors"])]
    chex.assert_trees_all_equal(hub.pairs, read_adapter(saved, read_config(whole_folder)).pairs)
    assert np.any(hub.pairs["q_proj"][1])
