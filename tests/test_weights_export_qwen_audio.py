"""Qwen-Audio-Chat's exports in plain arithmetic, under PEFT and as bytes; and a whole run by the command."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.numpy
import soundfile
import torch

from helpers import qwen_audio_reference as plain
from helpers.tensors import relative_error
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.inputs.batching import collate
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.testing.qwen_audio import small_values, write_qwen_audio
from rrs_jax.weights.export import export_adapter, export_merged
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.model_card import write_model_card
from rrs_jax.weights.safetensors_io import read_folder

ROOT = Path(__file__).parent.parent
IDS = np.random.default_rng(5).integers(3, 250, (2, 21))
ALL = LoRAConfig(rank=3, alpha=5.0, targets=None)
SOME = LoRAConfig(rank=2, alpha=4.0, targets=("c_attn", "mlp_c_proj"), first_layer=1)
MODULES = {
    "c_attn": "attn.c_attn",
    "attn_c_proj": "attn.c_proj",
    "w1": "mlp.w1",
    "w2": "mlp.w2",
    "mlp_c_proj": "mlp.c_proj",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen_audio")
    write_qwen_audio(path)
    return path


def load(folder, lora: LoRAConfig):
    """Loads the model; both LoRA matrices are random."""
    model, rng = load_weights(folder, lora=lora), np.random.default_rng(1)
    for target in model.lora.config.targets:
        pair = model.lora.pair(target)
        for parameter in (pair.lora_a, pair.lora_b):
            parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape) * 0.3, jnp.float32))
    return model


def representations(model) -> np.ndarray:
    batch = collate([(row.tolist(), [], []) for row in IDS], IDS.shape[1], model.config.audio_token_id)
    return np.asarray(model.representations(batch, jnp.zeros((1, 48))))


def reference(tensors: dict[str, np.ndarray]) -> np.ndarray:
    tensors = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
    return np.stack(
        [plain.decode(tensors, small_values(), tensors["transformer.wte.weight"][row])[-1][-1] for row in IDS]
    )


def tensors_of(folder) -> dict[str, np.ndarray]:
    return {name: entry.array() for name, entry in read_folder(folder).items()}


def touched(lora: LoRAConfig) -> set[str]:
    return {
        f"transformer.h.{i}.{MODULES[target]}"
        for i in range(lora.first_layer, 3)
        for target in lora.targets or MODULES
    }


@pytest.mark.parametrize("lora", [ALL, SOME], ids=["all", "some of the upper layers"])
def test_the_adapter_added_by_hand_gives_our_representation(folder, tmp_path, lora):
    """Keys as PEFT names the released modules; W + alpha / r · B · A, both linears called c_proj apart."""
    model = load(folder, lora)
    export_adapter(model, folder, tmp_path / "adapter", base_name="base")
    adapter = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    expected = {f"base_model.model.{name}.lora_{part}.weight" for name in touched(lora) for part in "AB"}
    assert adapter.keys() == expected
    tensors = dict(tensors_of(folder))
    for name in touched(lora):
        a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + config["lora_alpha"] / config["r"] * b @ a
    assert relative_error(representations(model), reference(tensors)) < 1e-5
    assert relative_error(representations(model), reference(tensors_of(folder))) > 1e-2


class Skeleton(torch.nn.Module):
    """Linears under the names of a folder's matrices, encoder and head too."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        super().__init__()
        for name, array in tensors.items():
            if array.ndim != 2 or not name.endswith(".weight"):
                continue
            module, *parents = self, *name.split(".")[:-1]
            for parent in parents[:-1]:
                if parent not in dict(module.named_children()):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.add_module(parents[-1], torch.nn.Linear(array.shape[1], array.shape[0], bias=False))


@pytest.mark.parametrize("lora", [ALL, SOME], ids=["all", "some of the upper layers"])
def test_peft_puts_it_on_exactly_its_modules(folder, tmp_path, lora):
    model = load(folder, lora)
    export_adapter(model, folder, tmp_path / "adapter", base_name="base")
    config = peft.LoraConfig.from_pretrained(tmp_path / "adapter")
    adapted = peft.inject_adapter_in_model(config, Skeleton(tensors_of(folder)))
    state = {
        name.removeprefix("base_model.model."): torch.tensor(array)
        for name, array in safetensors.numpy.load_file(
            tmp_path / "adapter" / "adapter_model.safetensors"
        ).items()
    }
    result = peft.set_peft_model_state_dict(adapted, state)
    assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora_" in key]
    layers = {
        name: module
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    assert set(layers) == touched(lora)
    export_merged(model, folder, tmp_path / "merged")
    before, after = tensors_of(folder), tensors_of(tmp_path / "merged")
    for name, module in layers.items():
        delta = module.get_delta_weight("default").detach().numpy()
        assert relative_error(after[f"{name}.weight"] - before[f"{name}.weight"], delta) < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_the_merged_folder_keeps_layout_files_and_untouched_bits(tmp_path, dtype):
    base = tmp_path / "base"
    base.mkdir()
    write_qwen_audio(base, dtype=dtype)
    model = load(base, SOME)
    export_merged(model, base, tmp_path / "merged")
    before, after = read_folder(base), read_folder(tmp_path / "merged")
    assert list(before) == list(after)
    for name, entry in after.items():
        assert entry.dtype == before[name].dtype and entry.shape == before[name].shape
        assert (entry.raw() == before[name].raw()) == (name.removesuffix(".weight") not in touched(SOME)), (
            name
        )
    tolerance = 1e-5 if dtype == np.float32 else 2e-2
    assert relative_error(representations(model), reference(tensors_of(tmp_path / "merged"))) < tolerance
    files = {file.name for file in base.iterdir()}
    assert {file.name for file in (tmp_path / "merged").iterdir()} == files | {"rrs_export.json"}
    for name in ("modeling_qwen.py", "mel_filters.npz", "qwen.tiktoken", "model.safetensors.index.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    # It says already that the head is not tied.
    assert read_json(tmp_path / "merged" / "config.json") == read_json(base / "config.json")
    write_model_card(tmp_path / "merged", base_folder=base, base_name="OWNER/NAME", settings={})
    card = (tmp_path / "merged" / "README.md").read_text()
    assert (
        "AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.bfloat16, trust_remote_code=True)"
        in card
    )
    assert "librosa" not in card and "`model.chat`" in card


def test_constants_of_older_copies_are_carried(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_qwen_audio(base)
    file = base / "model-00001-of-00002.safetensors"
    tensors = safetensors.numpy.load_file(file) | {"transformer.rotary_emb.inv_freq": np.ones(4, np.float32)}
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    export_merged(load(base, SOME), base, tmp_path / "merged")
    assert "transformer.rotary_emb.inv_freq" in read_folder(tmp_path / "merged")


def test_a_whole_run_by_the_command(folder, tmp_path):
    """Every stage on eight clips; the mode that the model lacks is null, the merged folder gives the trained
    answers."""
    rng, rows = np.random.default_rng(0), []
    for i, samples in enumerate((9_001, 23_456, 16_000, 31_337, 12_345, 20_000, 8_765, 15_555)):
        waveform = rng.normal(size=samples) * 0.1 * np.sin(np.arange(samples) / 900) ** 2
        soundfile.write(tmp_path / f"{i}.wav", waveform, 16_000, subtype="FLOAT")
        rows.append(
            {
                "id": f"q{i}",
                "pair_id": f"p{i // 2}",
                "label": ("harmful", "benign")[i % 2],
                "category": "c",
                "question": f"How do I answer you {i}?",
                "audio": f"{i}.wav",
            }
        )
    write_jsonl(tmp_path / "manifest.jsonl", rows)
    run, manifest = tmp_path / "run", tmp_path / "manifest.jsonl"
    command = [
        sys.executable,
        "launch.py",
        "--config=configs/qwen_audio_rrs.py:smoke",
        f"--config.model.path={folder}",
        "--config.model.dtype=float32",
        f"--config.run_dir={run}",
        f"--config.data.manifest={manifest}",
        f"--config.data.eval_manifest={manifest}",
        "--config.train.batch_size=8",
        "--config.train.learning_rate=0.01",
        "--config.generate.max_new_tokens=3",
        "--config.export.merged=True",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("vanilla", "rrs"):
        modes = read_json(run / "eval" / name / "summary.json")["modes"]
        assert modes["audio_only"] is None and all(
            modes[mode]["queries"] == 4 for mode in ("audio_text", "text_only")
        )
        responses = read_jsonl(run / "eval" / name / "responses.jsonl")
        assert {row["mode"] for row in responses} == {"audio_text", "text_only"}
    summary = read_json(run / "eval" / "rrs" / "summary.json")
    assert summary["nsi"].get("audio_only") is None and summary["nsi"]["average"] is not None
    table = [
        line.split("|")[1:-1]
        for line in (run / "report" / "table.md").read_text().splitlines()
        if line.startswith("|")
    ]
    column = [cells[0].strip() for cells in zip(*table, strict=True)].index("Compliance audio-only")
    assert [cells[column].strip() for cells in table[2:]] == ["N/A", "N/A"]
    config = json.loads((run / "export" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"].endswith("(c_attn|c_proj|w1|w2)")
    before, after = tensors_of(folder), tensors_of(run / "export" / "merged")
    assert any(not np.array_equal(before[f"{name}.weight"], after[f"{name}.weight"]) for name in touched(ALL))
