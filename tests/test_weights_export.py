"""The exported folders as PEFT and transformers load them, and as bytes."""

import json
import re
import resource
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

import rrs_jax
from helpers.qwen2_audio import make_reference
from helpers.tensors import relative_error
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.testing import write_qwen2_audio
from rrs_jax.weights.export import export_adapter, export_merged, merge
from rrs_jax.weights.load import load_weights
from rrs_jax.weights.model_card import write_model_card
from rrs_jax.weights.safetensors_io import load_file, read_folder

IDS = np.random.default_rng(5).integers(3, 120, (3, 11))
ALL = LoRAConfig(rank=3, alpha=5.0)
UPPER = LoRAConfig(rank=4, alpha=6.5, targets=("q_proj", "o_proj", "down_proj"), first_layer=1)


def load(folder, lora: LoRAConfig | None, dtype=jnp.float32, scale: float = 0.3):
    """The model on one device, both LoRA matrices random."""
    model = load_weights(folder, dtype=dtype, lora=lora, mesh=make_mesh(devices=jax.devices()[:1]))
    rng = np.random.default_rng(1)
    for target in lora.targets if lora else ():
        pair = model.lora.pair(target)
        for parameter in (pair.lora_a, pair.lora_b):
            parameter.set_value(jnp.asarray(rng.normal(size=parameter.shape) * scale, jnp.float32))
    return model


def representations(model) -> np.ndarray:
    rows, width = IDS.shape
    batch = Batch(jnp.asarray(IDS), jnp.full(rows, width), jnp.full(IDS.shape, -1))
    return np.asarray(model.representations(batch, jnp.zeros((1, model.config.text.hidden_size))))


def torch_representations(model) -> np.ndarray:
    with torch.no_grad():
        return (
            model(input_ids=torch.tensor(IDS), output_hidden_states=True)
            .hidden_states[-1][:, -1]
            .float()
            .numpy()
        )


def from_pretrained(folder, dtype=torch.float32):
    return transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()


def bytes_of(folder) -> dict[str, bytes]:
    return {name: entry.raw() for name, entry in read_folder(folder).items()}


@pytest.mark.parametrize(
    "config", [ALL, UPPER], ids=["all layers and targets", "upper layers, three targets"]
)
def test_adapter_and_merged_folder_give_our_representations(reference, folder, tmp_path, config, recwarn):
    model = load(folder, config)
    ours = representations(model)
    assert relative_error(ours, torch_representations(reference)) > 0.1

    export_adapter(model, folder, tmp_path / "adapter", base_name=str(folder))
    adapted = peft.PeftModel.from_pretrained(from_pretrained(folder), tmp_path / "adapter").eval()
    assert relative_error(torch_representations(adapted), ours) < 1e-4
    assert not [warning for warning in recwarn if "adapter keys" in str(warning.message)]
    lora_b = {name: value for name, value in adapted.named_parameters() if "lora_B" in name}
    assert len(lora_b) == len(config.targets) * (3 - config.first_layer)
    assert all("language_model" in name and value.abs().sum() > 0 for name, value in lora_b.items())

    export_merged(model, folder, tmp_path / "merged")
    assert relative_error(torch_representations(from_pretrained(tmp_path / "merged")), ours) < 1e-4


def test_an_adapter_at_another_strength(folder, tmp_path):
    """PEFT's own scaling of the unscaled adapter, 0.4 times as strong."""
    model = load(folder, UPPER)
    for name, scale in (("whole", {}), ("part", {"scale": 0.4})):
        export_adapter(model, folder, tmp_path / name, base_name=str(folder), **scale)
    theirs = peft.PeftModel.from_pretrained(from_pretrained(folder), tmp_path / "whole").eval()
    unscaled = torch_representations(theirs)
    for module in theirs.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(0.4)
    expected = torch_representations(theirs)
    assert relative_error(unscaled, expected) > 0.1
    ours = peft.PeftModel.from_pretrained(from_pretrained(folder), tmp_path / "part").eval()
    assert relative_error(torch_representations(ours), expected) < 1e-5
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]
    export_merged(model, folder, tmp_path / "merged", scale=0.4)
    assert relative_error(torch_representations(from_pretrained(tmp_path / "merged")), expected) < 1e-4
    assert model.lora.config == UPPER


@pytest.mark.parametrize(
    "config", [ALL, UPPER], ids=["all layers and targets", "upper layers, three targets"]
)
def test_target_modules_selects_the_modules_of_both_releases_of_transformers(folder, tmp_path, config):
    export_adapter(load(folder, config), folder, tmp_path / "adapter", base_name="OWNER/NAME")
    values = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    stored = safetensors.torch.load_file(tmp_path / "adapter/adapter_model.safetensors")
    in_file = {re.fullmatch(r"base_model\.model\.(.*)\.lora_[AB]\.weight", name)[1] for name in stored}
    assert len(stored) == 2 * len(in_file)
    # On disk and in transformers 4.57, modules are named as in the folder; 5 moves them under `model.`.
    modules = {name.rsplit(".", 1)[0] for name in read_folder(folder)}
    renamed = {
        re.sub(
            r"^language_model\.model\.",
            "model.language_model.",
            re.sub(r"^(audio_tower|multi)", r"model.\1", name),
        ): name
        for name in modules
    }
    linears = {
        name
        for name, module in from_pretrained(folder).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert linears - {"lm_head"} <= renamed.keys()
    pattern = values["target_modules"]
    assert {name for name in modules if re.fullmatch(pattern, name)} == in_file
    assert {old for new, old in renamed.items() if re.fullmatch(pattern, new)} == in_file
    assert re.search(r"\(([^()]*)\)$", pattern)[1].split("|") == list(config.targets)
    assert values["base_model_name_or_path"] == "OWNER/NAME"
    assert values["lora_alpha"] / values["r"] == config.scale
    with safetensors.safe_open(tmp_path / "adapter/adapter_model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert {value.dtype for value in stored.values()} == {torch.float32}


def test_more_than_ten_layers(tmp_path):
    """Layer 1 must not be taken for layer 11."""
    reference = make_reference(num_hidden_layers=13)
    reference.save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base", LoRAConfig(rank=2, targets=("v_proj",), first_layer=9))
    export_adapter(model, tmp_path / "base", tmp_path / "adapter", base_name="base")
    adapted = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    assert sum("lora_B" in name for name, _ in adapted.named_parameters()) == 4
    assert relative_error(torch_representations(adapted), representations(model)) < 1e-4


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)], ids=str
)
def test_merged_weights_are_those_of_peft_in_the_bases_dtype(tmp_path, dtype, tolerance):
    """PEFT rounds B·A to that dtype before it adds it, so that the last bits may differ."""
    base, config = tmp_path / "base", LoRAConfig(rank=3, alpha=5.0, targets=("k_proj", "up_proj"))
    make_reference().to(dtype).save_pretrained(base, max_shard_size="60KB")
    (base / "special").mkdir()
    (base / "special/vocabulary.txt").write_text("carried along")
    (base / "pytorch_model.bin").write_bytes(b"weights without the merge")
    (base / ".cache").mkdir()
    model = load(base, config)
    export_adapter(model, base, tmp_path / "adapter", base_name=str(base))
    export_merged(model, base, tmp_path / "merged")

    merged = peft.PeftModel.from_pretrained(from_pretrained(base), tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "peft")
    theirs, ours, before = read_folder(tmp_path / "peft"), read_folder(tmp_path / "merged"), read_folder(base)
    assert ours.keys() == before.keys()
    touched = [name for name in ours if re.search(r"language_model.*(k_proj|up_proj)\.weight", name)]
    assert len(touched) == 6
    for name, entry in ours.items():
        assert (entry.file.name, entry.dtype, entry.shape) == (
            before[name].file.name,
            before[name].dtype,
            before[name].shape,
        )
        if name in touched:
            assert relative_error(entry.array(), theirs[name].array()) < tolerance
            assert relative_error(entry.array(), before[name].array()) > 0.1
        else:
            assert entry.raw() == before[name].raw()
    files = {
        str(file.relative_to(tmp_path / "merged"))
        for file in (tmp_path / "merged").rglob("*")
        if file.is_file()
    }
    source = {str(file.relative_to(base)) for file in base.rglob("*") if file.is_file()}
    assert files == source - {"pytorch_model.bin"} | {"rrs_export.json"}
    assert (tmp_path / "merged/special/vocabulary.txt").read_text() == "carried along"
    index = "model.safetensors.index.json"
    assert (tmp_path / "merged" / index).read_bytes() == (base / index).read_bytes()
    assert from_pretrained(tmp_path / "merged", "auto").dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_untrained_lora_merges_to_the_same_bytes(tmp_path, dtype):
    reference = make_reference()
    weight = reference.model.language_model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight[0, :3] = torch.tensor([-0.0, 0.0, 1e-40])
    reference.to(dtype).save_pretrained(tmp_path / "base", max_shard_size="60KB")
    model = load_weights(
        tmp_path / "base", dtype=jnp.bfloat16, lora=ALL, mesh=make_mesh(devices=jax.devices()[:1])
    )
    export_merged(model, tmp_path / "base", tmp_path / "merged")
    for file in (tmp_path / "base").glob("*.safetensors"):
        assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes()


def test_merge_keeps_the_bits_of_what_it_does_not_change_and_rounds_once():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 30)).astype(ml_dtypes.bfloat16)
    weight[0, :2] = -0.0
    lora_a, lora_b = rng.normal(size=(2, 30)).astype(np.float32), rng.normal(size=(40, 2)).astype(np.float32)
    lora_b[0] = 0
    merged = merge(weight, lora_a, lora_b, 0.5)
    assert merged.dtype == weight.dtype and merged[0].tobytes() == weight[0].tobytes()
    exact = weight.astype(np.float64) + 0.5 * lora_b.astype(np.float64) @ lora_a
    # Half a unit in the last place of bfloat16's 8 bits, and float32's own error.
    assert np.all(np.abs(merged.astype(np.float64) - exact) <= np.abs(exact) * 2.0**-8 * 1.001 + 1e-6)


@pytest.mark.parametrize("case", ["no flag", "untied", "tied", "tied, but another head is stored"])
def test_config_says_whether_the_head_is_tied(tmp_path, case):
    make_reference(tie_word_embeddings=case.startswith("tied")).save_pretrained(tmp_path / "base")
    if case == "tied":
        tensors = safetensors.torch.load_file(tmp_path / "base/model.safetensors")
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
        safetensors.torch.save_file(tensors, tmp_path / "base/model.safetensors", {"format": "pt"})
    if case == "no flag":
        values = json.loads((tmp_path / "base/config.json").read_text())
        del values["tie_word_embeddings"], values["text_config"]["tie_word_embeddings"]
        (tmp_path / "base/config.json").write_text(json.dumps(values))
    model = load(tmp_path / "base", ALL)
    export_merged(model, tmp_path / "base", tmp_path / "merged")
    values = json.loads((tmp_path / "merged/config.json").read_text())
    assert values["tie_word_embeddings"] is values["text_config"]["tie_word_embeddings"] is (case == "tied")
    with torch.no_grad():
        expected = from_pretrained(tmp_path / "merged")(input_ids=torch.tensor(IDS)).logits[:, -1]
    assert relative_error(model.logits(representations(model)), expected) < 1e-4


def test_a_merged_shard_does_not_carry_the_sum_of_the_bases_numbers(tmp_path):
    """Files that this program wrote have one, by which a reader would call the merged numbers damaged."""
    write_qwen2_audio(tmp_path / "base")
    export_merged(load(tmp_path / "base", ALL), tmp_path / "base", tmp_path / "merged")
    shards = sorted((tmp_path / "merged").glob("*.safetensors"))
    different = 0
    for shard in shards:
        before, after = (
            load_file(folder / shard.name) for folder in (tmp_path / "base", tmp_path / "merged")
        )
        assert before[1] == after[1] and before[0].keys() == after[0].keys()
        different += sum(not np.array_equal(before[0][name], after[0][name]) for name in before[0])
        with safetensors.safe_open(shard, "np") as opened:
            assert all(np.array_equal(opened.get_tensor(name), after[0][name]) for name in after[0])
    assert len(shards) > 1 and different > 0


def test_exporting_again_replaces_what_an_export_made_and_nothing_else(folder, tmp_path):
    out = tmp_path / "merged"
    export_merged(load(folder, UPPER), folder, out)
    first = bytes_of(out)
    export_merged(load(folder, ALL), folder, out)
    assert bytes_of(out) != first
    assert [file.name for file in tmp_path.iterdir()] == ["merged"]

    (out / "rrs_export.json").unlink()
    with pytest.raises(UserError, match="merged: exists and was not made by an export"):
        export_merged(load(folder, ALL), folder, out)
    with pytest.raises(UserError, match="merged: exists and was not made by an export"):
        export_adapter(load(folder, ALL), folder, out, base_name="base")
    for inside in (folder, folder / "merged", folder.parent):
        with pytest.raises(UserError, match="lie in the base model's folder"):
            export_merged(load(folder, ALL), folder, inside)


def test_a_failed_write_leaves_the_old_folder_and_no_rest(folder, tmp_path):
    out, model = tmp_path / "merged", load(folder, ALL)
    export_merged(model, folder, out)
    before = bytes_of(out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(UserError, match="merged: the export failed .*free space"):
            export_merged(load(folder, UPPER), folder, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert bytes_of(out) == before and [file.name for file in tmp_path.iterdir()] == ["merged"]


def test_no_room_and_no_folder_are_said_before_anything_is_written(folder, tmp_path, monkeypatch):
    model = load(folder, ALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the export failed"):
        export_merged(model, folder, tmp_path / "file/merged")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1e9, 1e9, 1000))
    with pytest.raises(UserError, match=r"takes 0.00 GB and the disk has 0.00 GB free; free space"):
        export_merged(model, folder, tmp_path / "new/merged")
    assert not list((tmp_path / "new").iterdir())


def test_what_cannot_be_exported_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="carries no LoRA"):
        export_adapter(load(folder, None), folder, tmp_path / "adapter", base_name="base")
    model = load(folder, ALL)
    make_reference(intermediate_size=64, num_hidden_layers=2).save_pretrained(tmp_path / "other")
    with pytest.raises(
        UserError,
        match=r"layers.2.self_attn.q_proj.weight is missing.*up_proj.weight has the shape \(64, 48\)",
    ):
        export_merged(model, tmp_path / "other", tmp_path / "merged")
    pair = model.lora.pair("v_proj")
    pair.lora_a.set_value(pair.lora_a[...].at[1, 0, 0].set(jnp.nan))
    with pytest.raises(
        UserError, match="the LoRA of language_model.model.layers.1.self_attn.v_proj is not finite"
    ):
        export_adapter(model, folder, tmp_path / "adapter", base_name="base")
    make_reference().half().save_pretrained(tmp_path / "half")
    with pytest.raises(UserError, match=r"_proj.weight with the LoRA merged in is not finite in float16"):
        export_merged(load(tmp_path / "half", ALL, scale=1e3), tmp_path / "half", tmp_path / "merged")
    assert {file.name for file in tmp_path.iterdir()} == {"other", "half"}


SETTINGS = {
    "model.path": "somewhere/private",
    "strategy": "rrs",
    "lora.targets": ("q_proj", "v_proj"),
    "lora.start": "/home/me/adapters/first",
    "model.dtype": "float32",
    "generate.max_new_tokens": 12,
    "run_dir": "runs/x",
}


def python_of(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


SUMMARY = {
    "judge": "phrases",
    "asr_is": "compliance (1 - refusal), an upper bound of ASR",
    "modes": {
        "audio_text": {"asr": 12.5, "ci95": [4.5, 16.7], "queries": 20, "responses": 100},
        "text_only": {"asr": None, "ci95": None, "queries": 20, "responses": 100},
        "audio_only": None,
    },
    "orr": {"rate": 2.0, "ci95": [0.1, 9.0], "queries": 20, "responses": 100},
    "borderline_orr": None,
    "nsi": {"audio_text": 40.0, "average": 40.0},
}


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_model_card_is_valid_and_its_example_answers_as_we_do(
    whole_folder, sound_files, tmp_path, monkeypatch, capsys, form
):
    """The example is run as it is printed, in the folder of the card; the base lies there by its name."""
    base = tmp_path / "OWNER" / "NAME"
    shutil.copytree(whole_folder, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# The base\n")
    model, out = load(base, ALL), tmp_path / form
    if form == "adapter":
        export_adapter(model, base, out, base_name="OWNER/NAME")
    else:
        export_merged(model, base, out)
    table = "| Model | ASR |\n| --- | ---: |\n| rrs | 12.3 [4.5, 6.7] |"
    options = {"settings": SETTINGS, "results": table, "summaries": {"rrs-silence": SUMMARY}}
    write_model_card(out, base_folder=base, base_name="OWNER/NAME", **options)

    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert card.data.library_name == {"adapter": "peft", "merged": "transformers"}[form]
    assert card.data.base_model == "OWNER/NAME" and card.data.license == "apache-2.0"
    assert "qwen2_audio" in card.data.tags and ("lora" in card.data.tags) == (form == "adapter")
    assert table in card.content and "| `lora.targets` | q_proj, v_proj |" in card.content
    assert "private" not in card.content and "runs/x" not in card.content
    assert "| `lora.start` | first |" in card.content and "/home/me" not in card.content
    found = [(r.dataset_name, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert found == [
        ("starter set of RRS-JAX, silence: harmful, audio and text", "compliance", 12.5),
        ("starter set of RRS-JAX, silence: rewrites, audio and text", "orr", 2.0),
        ("starter set of RRS-JAX, silence: all", "nsi", 40.0),
    ]
    assert card.data.eval_results[0].metric_args == {"ci95": [4.5, 16.7]}
    assert card.data.to_dict()["model-index"][0]["name"] == "OWNER/NAME-RRS"

    (out / "OWNER").symlink_to(base.parent)
    (out / "question.wav").symlink_to(sound_files[1])
    monkeypatch.chdir(out)
    names: dict = {}
    exec(python_of(card.content), names)
    printed = capsys.readouterr().out.rstrip("\n")
    assert relative_error(torch_representations(names["model"]), representations(model)) < 1e-4
    # Ours, and the base's, which answers otherwise.
    expected = [
        rrs_jax.generate(loaded, [sound_files[1]], PROMPT_T, greedy=True, max_new_tokens=12)[0]
        for loaded in (
            rrs_jax.load_model(base, adapter=out) if form == "adapter" else rrs_jax.load_model(out),
            rrs_jax.load_model(base),
        )
    ]
    assert printed == expected[0] != expected[1]


def test_the_model_card_without_licence_results_or_hub_id(folder, tmp_path):
    with pytest.raises(UserError, match="was not made by an export"):
        write_model_card(tmp_path, base_folder=folder, base_name="x", settings={})
    export_adapter(load(folder, ALL), folder, tmp_path / "adapter", base_name=None)
    options = {"settings": {}, "repository": "OWNER/SAFE"}
    write_model_card(tmp_path / "adapter", base_folder=folder, base_name=None, **options)
    card = huggingface_hub.ModelCard.load(tmp_path / "adapter/README.md")
    assert card.data.base_model is None and card.data.license is None and card.data.eval_results is None
    assert str(folder.parent) not in card.content
    assert f'BASE = "PATH/{folder.name}"  # it has no hub id: write the path of its folder' in card.content
    assert 'ADAPTER = "OWNER/SAFE"' in card.content
    assert "names none" in card.content and "These weights were not evaluated" in card.content
    assert (
        json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] is None
    )
    peft.PeftModel.from_pretrained(from_pretrained(folder), tmp_path / "adapter")
