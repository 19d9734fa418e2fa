"""Exports of Qwen2.5-Omni, as transformers and PEFT load them: numbers, not exceptions, since PEFT leaves an
adapter at zero with no more than a warning where names do not match."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch

from helpers.omni import THINKER, WHOLE, make_thinker, make_whole, save_whole
from helpers.tensors import relative_error
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.inputs.batching import collate
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.testing.qwen2_5_omni import AUDIO
from rrs_jax.weights.export import export_adapter, export_merged
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.safetensors_io import read_folder

IDS = np.random.default_rng(5).integers(3, 120, (3, 11))
LORA = LoRAConfig(rank=3, alpha=5.0, targets=None)
UPPER = LoRAConfig(rank=2, alpha=3.0, targets=("q_proj", "down_proj"), first_layer=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The whole model in shards, and the thinker alone."""
    whole, thinker = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("thinker")
    save_whole(make_whole(), whole, max_shard_size="60KB")
    make_thinker().save_pretrained(thinker)
    return {"whole": whole, "thinker": thinker}


def load(folder, lora):
    """Loads the model onto one device; both LoRA matrices are random."""
    model = load_weights(folder, lora=lora, mesh=make_mesh(devices=jax.devices()[:1]))
    rng = np.random.default_rng(1)
    for target in model.lora.config.targets:
        for parameter in (model.lora.pair(target).lora_a, model.lora.pair(target).lora_b):
            parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape) * 0.3, jnp.float32))
    return model


def representations(model) -> np.ndarray:
    batch = collate([(row.tolist(), [], []) for row in IDS], IDS.shape[1], AUDIO)
    return np.asarray(model.representations(batch, jnp.zeros((1, 48))))


def torch_representations(model) -> np.ndarray:
    thinker = getattr(model, "thinker", model)
    with torch.no_grad():
        return (
            thinker(input_ids=torch.tensor(IDS), output_hidden_states=True).hidden_states[-1][:, -1].numpy()
        )


@pytest.fixture(scope="module")
def adapters(folders, tmp_path_factory):
    """A trained model of each folder, and its adapter in each layout."""
    made = {}
    for kind, folder in folders.items():
        model, out = load(folder, LORA), tmp_path_factory.mktemp("adapters")
        for layout in ("auto", "whole4", "thinker4", "whole5", "thinker5"):
            export_adapter(model, folder, out / layout, base_name=str(folder), layout=layout)
        made[kind] = representations(model), out
    return made


# MODELS.md's matrix for transformers 5, and the layout that it did not try.
@pytest.mark.parametrize(
    "kind, layout, reader, loads",
    [
        ("whole", "whole4", THINKER, True),
        ("whole", "whole4", WHOLE, False),
        ("whole", "whole5", WHOLE, True),
        ("whole", "thinker4", THINKER, True),
        ("whole", "thinker5", THINKER, True),
        ("whole", "thinker4", WHOLE, False),
        ("thinker", "thinker4", THINKER, True),
        ("thinker", "thinker5", THINKER, True),
        ("thinker", "whole4", THINKER, True),
    ],
)
def test_which_class_reads_which_layout(folders, adapters, kind, layout, reader, loads):
    ours, out = adapters[kind]
    base = reader.from_pretrained(folders[kind]).eval()
    before = torch_representations(base)
    assert relative_error(before, ours) > 0.1
    adapted = peft.PeftModel.from_pretrained(base, out / layout).eval()
    lora_b = [parameter for name, parameter in adapted.named_parameters() if "lora_B" in name]
    assert len(lora_b) == 7 * 3
    after = torch_representations(adapted.base_model.model)
    if loads:
        assert relative_error(after, ours) < 1e-4 and all(value.any() for value in lora_b)
    else:
        assert relative_error(after, before) == 0 and not any(value.any() for value in lora_b)


@pytest.mark.parametrize("kind, first", [("whole", "whole4"), ("thinker", "thinker4")])
def test_auto_is_the_layout_that_most_readers_know(adapters, kind, first):
    _, out = adapters[kind]
    auto, named = (
        safetensors.torch.load_file(out / name / "adapter_model.safetensors") for name in ("auto", first)
    )
    assert auto.keys() == named.keys() and len(auto) == 2 * 7 * 3


def test_target_modules_leaves_talker_and_towers_alone(folders, adapters):
    pattern = json.loads((adapters["whole"][1] / "auto/adapter_config.json").read_text())["target_modules"]
    modules = {name.rsplit(".", 1)[0] for name in read_folder(folders["whole"])}
    chosen = {name for name in modules if re.fullmatch(pattern, name)}
    assert len(chosen) == 7 * 3 and all(name.startswith("thinker.model.layers.") for name in chosen)
    assert any(name.startswith("talker.model.layers.0.self_attn.q_proj") for name in modules)
    live = {name for name, _ in WHOLE.from_pretrained(folders["whole"]).named_modules()}
    chosen = {name for name in live if re.fullmatch(pattern, name)}
    assert len(chosen) == 7 * 3 and all(
        name.startswith("thinker.model.language_model.layers.") for name in chosen
    )


@pytest.mark.parametrize("lora", [LORA, UPPER], ids=["all", "upper layers"])
@pytest.mark.parametrize("kind", ["whole", "thinker"])
def test_the_merged_folder_keeps_every_tensor_and_gives_our_representations(folders, tmp_path, kind, lora):
    folder, model = folders[kind], load(folders[kind], lora)
    export_merged(model, folder, tmp_path / "merged")
    before, after = read_folder(folder), read_folder(tmp_path / "merged")
    assert before.keys() == after.keys()
    prefix = "thinker." if kind == "whole" else ""
    layers = range(lora.first_layer, 3)
    touched = {
        name
        for name in before
        for i in layers
        for target in model.lora.config.targets
        if name.startswith(f"{prefix}model.layers.{i}.") and name.endswith(f"{target}.weight")
    }
    assert len(touched) == len(layers) * len(model.lora.config.targets)
    for name, entry in after.items():
        assert (entry.raw() == before[name].raw()) == (name not in touched), name
    files = {file.name for file in folder.iterdir()}
    assert {file.name for file in (tmp_path / "merged").iterdir()} == files | {"rrs_export.json"}
    classes = (WHOLE, THINKER) if kind == "whole" else (THINKER,)
    for reader in classes:
        merged = reader.from_pretrained(tmp_path / "merged").eval()
        assert relative_error(torch_representations(merged), representations(model)) < 1e-4
    assert relative_error(representations(load_weights(tmp_path / "merged")), representations(model)) < 1e-4
    values = json.loads((tmp_path / "merged/config.json").read_text())
    thinker = values.get("thinker_config", values)
    assert thinker["tie_word_embeddings"] is thinker["text_config"]["tie_word_embeddings"] is False


def test_layouts_of_other_models_are_refused(folders, folder, tmp_path):
    """`folder` is a Qwen2-Audio."""
    model = load_weights(folder, lora=LORA)
    with pytest.raises(
        UserError, match="export.layout: thinker4 is not one of this model's; choose auto, whole4 or whole5"
    ):
        export_adapter(model, folder, tmp_path / "adapter", base_name="base", layout="thinker4")
    with pytest.raises(UserError, match="holds another architecture than the trained model"):
        export_adapter(load(folders["thinker"], LORA), folder, tmp_path / "adapter", base_name="base")
