"""The export stage: the base's name, the rates on the card, and the upload to a hub on this computer."""

import copy
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from helpers.hub_server import TOKEN, running_hub
from rrs_jax.config import default_config
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, write_json, write_jsonl
from rrs_jax.run import pipeline, preflight
from rrs_jax.testing import twin_rows
from rrs_jax.weights.base_name import published_name


@pytest.fixture(scope="module")
def config(whole_folder, sound_files, tmp_path_factory):
    """Of a run that has been trained and evaluated."""
    path = tmp_path_factory.mktemp("run")
    write_jsonl(path / "manifest.jsonl", twin_rows(sound_files))
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(whole_folder), "float32", str(path / "run")
    config.data.manifest = config.data.eval_manifest = str(path / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 8, 1e-2
    config.evaluate.samples, config.generate.max_new_tokens = 1, 4
    config.report.representation_epochs = ()
    pipeline.run(config, ("data", "extract", "train", "evaluate"))
    return config


def exported(config, **changes) -> Path:
    """The folder RUN/export after an export with these values of the group `export`."""
    changed = copy.deepcopy(config)
    changed.export.update(changes)
    pipeline.run(changed, ("export",))
    return Path(config.run_dir) / "export"


def test_a_base_of_unknown_name_is_not_named_and_that_is_said(config, whole_folder, capsys):
    folder = exported(config) / "adapter"
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] is None
    said = capsys.readouterr().err
    assert "export: nothing in the model's folder says under which name it is published, so" in said
    assert "--config.export.base_name=OWNER/NAME does" in said
    for file in ("adapter_config.json", "rrs_export.json", "README.md"):
        text = (folder / file).read_text()
        assert str(whole_folder) not in text and str(Path(config.run_dir).parent) not in text
    folder = exported(config, base_name="OWNER/NAME") / "adapter"
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "OWNER/NAME"
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.base_model == "OWNER/NAME"
    assert "export: nothing" not in capsys.readouterr().err


def test_where_a_bases_name_is_read(whole_folder, tmp_path):
    assert published_name("OWNER/NAME", tmp_path) == ("OWNER/NAME", "model.path")
    cached = tmp_path / "models--Some-One--A-Model.v2" / "snapshots" / "0123"
    shutil.copytree(whole_folder, cached)
    assert published_name(str(cached), cached) == ("Some-One/A-Model.v2", "its place in the hub's cache")
    plain = shutil.copytree(whole_folder, tmp_path / "plain")
    values = read_json(plain / "config.json")
    for recorded, name in (("OWNER/NAME", "OWNER/NAME"), ("/home/me/model", None), ("./mine/model", None)):
        write_json(plain / "config.json", values | {"_name_or_path": recorded})
        assert published_name(str(plain), plain)[0] == name


def test_a_name_that_the_folder_has_is_told(config, whole_folder, capsys):
    """The run's model is the same folder with a name in its config.json."""
    file = whole_folder / "config.json"
    before = file.read_bytes()
    try:
        write_json(file, read_json(file) | {"_name_or_path": "OWNER/FOUND"})
        folder = exported(config, layout="whole4") / "adapter"
    finally:
        file.write_bytes(before)
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "OWNER/FOUND"
    assert "the base is called OWNER/FOUND, as _name_or_path in config.json says" in capsys.readouterr().err


def test_the_card_has_the_rates_of_the_weights_that_lie_beside_it_alone(config):
    card = huggingface_hub.ModelCard.load(exported(config, checkpoint="last") / "adapter" / "README.md")
    summary = read_json(Path(config.run_dir) / "eval" / "rrs" / "summary.json")
    rates = {result.dataset_name: result for result in card.data.eval_results}
    spoken = rates["questions of the run: harmful, audio and text"]
    assert (spoken.metric_type, spoken.metric_value) == ("compliance", summary["modes"]["audio_text"]["asr"])
    assert spoken.dataset_args == {"queries": 4, "responses": 4}
    rewrites = rates["questions of the run: rewrites, audio and text"]
    assert (rewrites.metric_type, rewrites.metric_value) == ("orr", summary["orr"]["rate"])
    assert rates["questions of the run: all"].metric_value == summary["nsi"]["average"]
    assert "| rrs |" in card.content
    card = huggingface_hub.ModelCard.load(exported(config, checkpoint=1) / "adapter" / "README.md")
    assert card.data.eval_results is None and "These weights were not evaluated" in card.content
    folder = exported(config, scale=0.5, merged=True)
    assert read_json(folder / "adapter" / "adapter_config.json")["lora_alpha"] == 0.5 * config.lora.alpha
    for form in ("adapter", "merged"):
        card = huggingface_hub.ModelCard.load(folder / form / "README.md")
        assert card.data.eval_results is None and "What was trained counts 0.5 times here." in card.content


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_adapter_and_merged_folder_are_uploaded(config, hub):
    folder = exported(config, push="me/safe", merged=True)
    assert [(one["name"], one.get("private"), one.get("visibility")) for one in hub.made] in (
        [("safe", True, None), ("safe-merged", True, None)],
        [("safe", None, "private"), ("safe-merged", None, "private")],
    )
    for name, repository in (("adapter", "me/safe"), ("merged", "me/safe-merged")):
        there = {path: content for (where, path), content in hub.files.items() if where == repository}
        here = [file for file in (folder / name).rglob("*") if file.is_file()]
        assert there == {str(file.relative_to(folder / name)): file.read_bytes() for file in here}
        assert f'"{repository}"' in there["README.md"].decode()
    mark = read_json(Path(config.run_dir) / ".done" / "export.json")
    assert mark["uploads"] == [f"{hub.address}/me/{name}/commit/0" for name in ("safe", "safe-merged")]


def refused(config, monkeypatch, name="me/safe") -> str:
    """The sentence with which a run ends before its first stage."""
    config = copy.deepcopy(config)
    config.run_dir, config.export.push = str(Path(config.run_dir).parent / "new"), name
    monkeypatch.setattr(pipeline, "do_stage", lambda *_: pytest.fail("a stage has begun"))
    with pytest.raises(UserError) as error:
        pipeline.run(config, ("data", "extract", "train", "export"))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    return str(error.value)


def test_a_token_that_is_missing_or_refused_is_told_before_training(config, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    said = refused(config, monkeypatch)
    assert said.startswith(
        "export.push: me/safe needs a token of the hub and there is none; run `hf auth login`"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    said = refused(config, monkeypatch)
    assert said.startswith("export.push: the hub refuses the token (") and "hf_bad" not in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.role = "read"
    assert "export.push: the token of me may only read; run" in refused(config, monkeypatch)
    hub.role = "write"
    said = refused(config, monkeypatch, "others/safe")
    assert "export.push: me may not write to others/safe (" in said and "give a name of your own" in said
    assert not hub.made and not hub.files


def test_an_upload_that_fails_leaves_the_folder_and_is_tried_again(config, hub):
    hub.refuses_uploads = True
    with pytest.raises(UserError) as error:
        exported(config, push="me/again")
    assert str(error.value).startswith("export.push: me/again could not be uploaded (")
    assert str(error.value).endswith("is whole, and the same command tries again.")
    assert (Path(config.run_dir) / "export" / "adapter" / "adapter_model.safetensors").is_file()
    hub.refuses_uploads = False
    exported(config, push="me/again")
    assert ("me/again", "adapter_model.safetensors") in hub.files


def test_the_hub_is_not_asked_without_an_export(config, hub):
    changed = copy.deepcopy(config)
    changed.export.push = "me/safe"
    preflight.check_needs(
        pipeline.RunContext(changed, pipeline.RunFolder(changed.run_dir, changed)), ("evaluate",)
    )
    assert not hub.made
