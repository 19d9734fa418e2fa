"""What a run will need is tried before the first clip is spoken."""

import shutil
import types
from pathlib import Path

import pytest

from rrs_jax.config import default_config
from rrs_jax.data import speech
from rrs_jax.data.engines import ENGINES, Hibari
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, write_jsonl
from rrs_jax.models.lora import LoRA
from rrs_jax.models.qwen2_audio import Qwen2AudioConfig
from rrs_jax.run import pipeline, preflight
from rrs_jax.run.context import lora_config
from rrs_jax.run.folder import LEAST_FREE_BYTES
from rrs_jax.testing import twin_rows
from rrs_jax.weights import hub

STAGES = ("data", "extract", "train", "evaluate", "export", "report")


@pytest.fixture
def nothing_begins(monkeypatch):
    """A stage that begins is a failure."""

    def begin(*_):
        raise AssertionError("a stage has begun")

    monkeypatch.setattr(pipeline, "do_stage", begin)


@pytest.fixture
def config(whole_folder, sound_files, tmp_path):
    write_jsonl(tmp_path / "manifest.jsonl", twin_rows(sound_files))
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = (
        str(whole_folder),
        "float32",
        str(tmp_path / "run"),
    )
    config.data.manifest = config.data.eval_manifest = str(tmp_path / "manifest.jsonl")
    return config


def refused(config, stages=STAGES) -> str:
    with pytest.raises(UserError) as error:
        pipeline.run(config, stages)
    return str(error.value)


def test_a_run_that_has_all_it_needs_begins(config, nothing_begins):
    with pytest.raises(AssertionError, match="a stage has begun"):
        pipeline.run(config, STAGES)


def test_a_template_or_refusal_token_that_fails_is_found_at_once(
    config, whole_folder, tmp_path, nothing_begins
):
    folder = shutil.copytree(whole_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no audio here') }}")
    config.model.path = str(folder)
    assert "the chat template cannot be rendered (no audio here)" in refused(config)
    config.model.path, config.rrs.refusal_tokens = str(whole_folder), ("I", "I am sorry")
    assert "'I am sorry' is" in refused(config)
    config.model.path = str(tmp_path / "nowhere")
    assert "nowhere is no folder" in refused(config)


def test_targets_and_layers_that_the_model_lacks_are_found_at_once(config, nothing_begins):
    config.lora.targets = ("q_proj", "c_attn")
    assert "lora.targets: c_attn matches no linear" in refused(config)
    config.lora.targets, config.lora.layers = ("q_proj",), 40
    assert "lora.layers: 40 leaves no layer" in refused(config)


@pytest.mark.parametrize("missing", ["train", "eval"])
def test_a_manifest_with_faults_is_named_before_speech(config, tmp_path, nothing_begins, missing):
    rows = twin_rows([Path("absent.wav")] * 8)
    write_jsonl(tmp_path / "bad.jsonl", [row | {"label": "neutral"} for row in rows])
    config.data["manifest" if missing == "train" else "eval_manifest"] = str(tmp_path / "bad.jsonl")
    assert "bad.jsonl: 8 faults to mend" in refused(config)


def test_voices_are_tried_where_a_question_has_no_clip(
    config, tmp_path, sound_files, monkeypatch, nothing_begins
):
    def no_voice(self):
        raise UserError("no voice is here")

    monkeypatch.setattr(Hibari, "__init__", no_voice)
    speech.loaded.cache_clear()
    with pytest.raises(AssertionError, match="a stage has begun"):
        pipeline.run(config, STAGES)  # every question has a clip
    config.evaluate.setting = ("other_voices",)
    assert refused(config) == "no voice is here"
    config.evaluate.setting, config.data.everyday = ("spoken",), 3
    assert refused(config) == "no voice is here"
    config.data.everyday = 0
    rows = twin_rows(sound_files)
    write_jsonl(tmp_path / "mute.jsonl", [*rows[:-1], rows[-1] | {"audio": None}])
    config.data.eval_manifest = str(tmp_path / "mute.jsonl")
    assert refused(config) == "no voice is here"
    config.data.manifest = config.data.eval_manifest = None
    assert refused(config) == "no voice is here"
    speech.loaded.cache_clear()


def test_each_engine_of_the_voices_speaks_a_word(config, monkeypatch, nothing_begins):
    """An engine can be installed and yet broken."""
    broken = type("Broken", (), {"name": "broken", "sample_rate": 16_000, "voices": (), "version": "1"})
    broken.say = lambda self, *_: (_ for _ in ()).throw(UserError("broken cannot speak"))
    monkeypatch.setitem(ENGINES, "broken", broken)
    config.data.manifest, config.data.voices = None, ("hibari:heart", "broken:any")
    assert refused(config) == "broken cannot speak"


def test_packages_that_the_config_asks_for_are_named(config, tmp_path, monkeypatch, nothing_begins):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    config.evaluate.judges, config.judge.url, config.judge.model = (
        ("llm:default",),
        "http://localhost:9/v1",
        "m",
    )
    assert refused(config) == "evaluate.judges=llm:default: needs the package openai; run: pip install openai"
    config.evaluate.judges = ("phrases", f"llama_guard:{tmp_path}")
    assert refused(config).endswith("needs the package torch; run: pip install torch")
    config.evaluate.judges, config.data.exclude = ("phrases",), ("questions.parquet",)
    assert refused(config) == "reading Parquet: needs the package pyarrow; run: pip install pyarrow"


def test_room_for_checkpoints_and_the_merged_model_is_asked_for(
    config, whole_folder, monkeypatch, nothing_begins
):
    asked = []
    monkeypatch.setattr(preflight, "check_disk", lambda path, needed: asked.append(needed))
    weights = sum(file.stat().st_size for file in whole_folder.glob("*.safetensors"))
    for merged in (False, True):
        config.export.merged = merged
        with pytest.raises(AssertionError, match="a stage has begun"):
            pipeline.run(config, STAGES)
    # Weights and two moments, 4 bytes each; the latest two, the best and the one being written.
    text = Qwen2AudioConfig.from_hf(read_json(whole_folder / "config.json")).text
    adapters = LoRA(lora_config(config), text.adapted_linears(), text.num_hidden_layers)
    checkpoints = 4 * 3 * 4 * sum(a.size + b.size for a, b, _ in adapters.pairs())
    assert asked == [LEAST_FREE_BYTES + checkpoints, LEAST_FREE_BYTES + checkpoints + weights]


@pytest.fixture
def hub_model(whole_folder, tmp_path, monkeypatch):
    """A hub with the model OWNER/NAME, whose weights are 5 GB; returns what was fetched."""
    fetched, snapshot = [], tmp_path / "cache" / "snapshots" / "0123"

    def snapshot_download(path, allow_patterns):
        fetched.append(tuple(allow_patterns))
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in whole_folder.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, snapshot)
        return str(snapshot)

    def model_info(self, path, revision, files_metadata):
        assert (path, revision, files_metadata) == ("OWNER/NAME", "0123", True)
        sizes = {"config.json": 10, "model.safetensors": 5_000_000_000, "pytorch_model.bin": 9_000_000_000}
        return types.SimpleNamespace(
            siblings=[types.SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        )

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    return fetched


def test_of_a_hub_model_the_small_files_are_tried_before_the_weights(
    config, hub_model, capsys, nothing_begins
):
    config.model.path = "OWNER/NAME"
    with pytest.raises(AssertionError, match="a stage has begun"):
        pipeline.run(config, STAGES)
    assert set(hub_model) == {hub.SMALL_FILES}
    assert "OWNER/NAME: 5.0 GB will be fetched from the hub" in capsys.readouterr().err


def test_too_little_room_for_a_hub_model_is_said_before_it_is_fetched(
    config, hub_model, monkeypatch, nothing_begins
):
    config.model.path = "OWNER/NAME"
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=4_000_000_000))
    assert "OWNER/NAME takes 5.0 GB more and the disk of" in refused(config)
    assert set(hub_model) == {hub.SMALL_FILES}
