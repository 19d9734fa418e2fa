"""Qwen2.5-Omni from prompts and sound files to a finished run of `launch.py`."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import soundfile
import torch
import transformers

import rrs_jax
from helpers.omni import THINKER, WHOLE, make_whole, save_whole
from helpers.tensors import randomise, relative_error
from helpers.xla_flags import UNOPTIMISED
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.inputs.mel import MelConfig
from rrs_jax.inputs.processor import Processor
from rrs_jax.models.released import RELEASED
from rrs_jax.run.dry_run import make_plan
from rrs_jax.run.estimates import DeviceRate
from rrs_jax.testing import twin_rows
from rrs_jax.testing.tokenizer import write_tokenizer

REPOSITORY = Path(__file__).parent.parent
RATE = 16_000
# Renders as the released template does for text and audio, written anew.
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{%"
    " endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{%"
    " else %}{% for c in m.content %}{% if c.type == 'audio' or 'audio_url' in c"
    " %}<|audio_bos|><|AUDIO|><|audio_eos|>{% elif 'text' in c %}{{ c.text }}{% endif %}{% endfor %}{% endif"
    " %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model's folder as it is published: weights of all parts, tokenizer, feature extractor of 300 s;
    its generation config is empty."""
    path = tmp_path_factory.mktemp("omni")
    write_tokenizer(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = make_whole(vocab_size=len(tokenizer) + 8)
    values = model.config.to_dict()
    thinker = values["thinker_config"]
    thinker["audio_config"]["num_mel_bins"] = 80
    for field, token in (
        ("audio_token_index", "<|AUDIO|>"),
        ("audio_start_token_id", "<|audio_bos|>"),
        ("audio_end_token_id", "<|audio_eos|>"),
    ):
        thinker[field] = tokenizer.convert_tokens_to_ids(token)
    for i, field in enumerate(
        ("image_token_index", "video_token_index", "vision_start_token_id", "vision_end_token_id")
    ):
        thinker[field] = len(tokenizer) + i
    model = WHOLE(transformers.Qwen2_5OmniConfig(**values)).float().eval()
    randomise(model)
    save_whole(model, path, max_shard_size="200KB")
    (path / "generation_config.json").write_text("{}")
    transformers.WhisperFeatureExtractor(
        feature_size=80, chunk_length=300, return_attention_mask=True
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Noise under a slow envelope, of odd lengths, one longer than what Qwen2-Audio takes."""
    path = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    files = []
    for i, samples in enumerate((9_001, 23_456, 16_000, 12_345, 31 * RATE + 77)):
        waveform = rng.normal(size=samples) * 0.1 * np.sin(np.arange(samples) / 900) ** 2
        files.append(path / f"{i}.wav")
        soundfile.write(files[-1], waveform, RATE, subtype="FLOAT")
    return files


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
END = "<|im_end|>\n<|im_start|>assistant\n"
AUDIO = "<|audio_bos|><|AUDIO|><|audio_eos|>"
CASES = {
    "audio and text": ((PROMPT_T, [7], None), f"{SYSTEM}<|im_start|>user\n{AUDIO}{PROMPT_T}{END}"),
    "text only": (
        ("How do I fix a bicycle?", [], None),
        f"{SYSTEM}<|im_start|>user\nHow do I fix a bicycle?{END}",
    ),
    "audio only": ((None, [5], None), f"{SYSTEM}<|im_start|>user\n{AUDIO}{END}"),
    "two clips": (
        ("Compare both.", [3, 8], None),
        f"{SYSTEM}<|im_start|>user\n{AUDIO}{AUDIO}Compare both.{END}",
    ),
    "own system": (
        ("Hi\n", [4], "Be brief."),
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{AUDIO}Hi\n{END}",
    ),
}


@pytest.mark.parametrize("template", ["default", "chat_template.json"])
@pytest.mark.parametrize("case", CASES)
def test_prompts(folder, tmp_path, case, template):
    """Prompts equal the released template's text, read by transformers' tokenizer."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if template != "default":
        (tmp_path / template).write_text(json.dumps({"chat_template": TEMPLATE}))
    (text, counts, system), written = CASES[case]
    for count in counts:
        written = written.replace("_bos|><|AUDIO|>", "_bos|>" + "<|AUDIO.|>" * count, 1)
    expected = transformers.AutoTokenizer.from_pretrained(folder)(written.replace("AUDIO.", "AUDIO"))[
        "input_ids"
    ]
    assert Processor.from_folder(tmp_path).encode(text, counts, system) == expected


def test_settings_of_the_folder(folder):
    processor = Processor.from_folder(folder)
    assert processor.mel == MelConfig(num_mel_bins=80, max_seconds=300)
    ids = processor.special_tokens
    assert set(processor.eos_token_ids) == {ids["<|im_end|>"], ids["<|endoftext|>"]}
    assert processor.audio_token_id == ids["<|AUDIO|>"]


def reference_representations(model, folder, files) -> np.ndarray:
    """Returns the states of transformers' tokenizer, extractor and thinker, one clip at a time."""
    thinker = getattr(model, "thinker", model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    rows = []
    for file in files:
        waveform = soundfile.read(file, dtype="float32")[0]
        features = extractor(
            waveform,
            sampling_rate=RATE,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = features["attention_mask"]
        tower = thinker.get_submodule("model.audio_tower")
        _, count = tower._get_feat_extract_output_lengths(mask.sum())
        prompt = CASES["audio and text"][1].replace("<|AUDIO|>", "<|AUDIO|>" * int(count))
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = thinker(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                input_features=features["input_features"],
                feature_attention_mask=mask,
                output_hidden_states=True,
            )
        rows.append(output.hidden_states[-1][0, -1].numpy())
    return np.stack(rows)


def test_representations_from_sound_files_equal_transformers(folder, clips):
    model = rrs_jax.load_model(folder)
    batch = rrs_jax.make_batch(model, clips, PROMPT_T)
    expected = reference_representations(THINKER.from_pretrained(folder), folder, clips)
    assert relative_error(rrs_jax.extract_reps(model, batch), expected) < 1e-4


@pytest.fixture(scope="module")
def run(folder, clips, tmp_path_factory):
    """All stages by launch.py in a process of its own, on one device."""
    path = tmp_path_factory.mktemp("run")
    rows = twin_rows(clips[:4])
    write_jsonl(path / "manifest.jsonl", rows)
    command = [
        sys.executable,
        "launch.py",
        "--config=configs/omni_rrs.py",
        f"--config.model.path={folder}",
        "--config.model.dtype=float32",
        f"--config.run_dir={path / 'run'}",
        f"--config.data.manifest={path / 'manifest.jsonl'}",
        f"--config.data.eval_manifest={path / 'manifest.jsonl'}",
        "--config.train.epochs=2",
        "--config.train.batch_size=4",
        "--config.train.learning_rate=0.01",
        "--config.evaluate.samples=1",
        "--config.generate.max_new_tokens=3",
        "--config.export.merged=True",
    ]
    environment = os.environ | {"XLA_FLAGS": UNOPTIMISED, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return path / "run"


def test_a_run_leaves_the_files_it_promises(run):
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2]
    summary = read_json(run / "eval/rrs/summary.json")
    assert all(summary["modes"][mode]["queries"] == 2 for mode in ("audio_text", "text_only", "audio_only"))
    assert summary["nsi"] is not None and "| rrs |" in (run / "report/table.md").read_text()
    assert read_json(run / "config.json")["config"]["rrs"]["top_m"] == 51


def test_the_exported_adapter_and_the_merged_folder_give_the_trained_representations(run, folder, clips):
    base = THINKER.from_pretrained(folder)
    before = reference_representations(base, folder, clips[:2])
    adapted = peft.PeftModel.from_pretrained(base, run / "export/adapter").eval()
    expected = reference_representations(adapted.base_model.model, folder, clips[:2])
    assert relative_error(before, expected) > 1e-2
    merged = reference_representations(WHOLE.from_pretrained(run / "export/merged"), folder, clips[:2])
    assert relative_error(merged, expected) < 1e-4
    model = rrs_jax.load_model(run / "export/merged")
    assert (
        relative_error(rrs_jax.extract_reps(model, rrs_jax.make_batch(model, clips[:2], PROMPT_T)), expected)
        < 1e-4
    )


class StandIn:
    """In place of transformers' processor of Omni, whose pictures need packages beyond torch."""

    def __init__(self, folder):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
        self.batch_decode = self.tokenizer.batch_decode

    def apply_chat_template(self, messages, **options) -> str:
        return self.tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, **options)

    def __call__(self, text: str, audio, sampling_rate: int, return_tensors: str):
        features = self.extractor(
            audio, sampling_rate=sampling_rate, return_attention_mask=True, return_tensors=return_tensors
        )
        frames = features.pop("attention_mask")
        count = ((int(frames.sum()) - 1) // 2 - 1) // 2 + 1  # of the encoder's outputs
        text = text.replace("<|AUDIO|>", "<|AUDIO|>" * count)
        features |= self.tokenizer(text, return_tensors=return_tensors)
        return transformers.BatchFeature({**features, "feature_attention_mask": frames})


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_cards_example_answers_as_we_do(run, folder, clips, tmp_path, monkeypatch, capsys, form):
    """The example is run as it is printed, in the folder of the card; the base lies where its PATH stands."""
    exported = shutil.copytree(run / "export" / form, tmp_path / form)
    (exported / "PATH").mkdir()
    (exported / "PATH" / folder.name).symlink_to(folder)
    (exported / "question.wav").symlink_to(clips[1])
    card = (exported / "README.md").read_text()
    assert ("--enable-lora" in card) == (form == "adapter")
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda path: StandIn(folder))
    monkeypatch.chdir(exported)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    printed = capsys.readouterr().out.rstrip("\n")
    model = (
        rrs_jax.load_model(folder, adapter=exported) if form == "adapter" else rrs_jax.load_model(exported)
    )
    assert rrs_jax.generate(model, [clips[1]], PROMPT_T, greedy=True, max_new_tokens=3) == [printed]


def config_of(name: str, variant: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize(
    "name, size", [("omni_rrs", "omni-7b"), ("omni_rrs", "omni-3b"), ("qwen2_rrs", "qwen2-audio")]
)
def test_the_preset_for_24_gb_fits_by_the_dry_run(tmp_path, name, size):
    """The dry run reads config.json alone; the parameters are those of the 7B without what is not loaded."""
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[size]))
    config = config_of(name, "card24")
    config.model.path, config.run_dir = str(tmp_path), str(tmp_path / "run")
    # The tests have eight devices: eight times as many rows are the preset's on each.
    config.train.batch_size, config.generate.batch_size = 16 * len(jax.devices()), 8 * len(jax.devices())
    plan = make_plan(config, (), DeviceRate(flops=1e14, bandwidth=1e12))
    assert plan.memory_needed < 22 * 2**30
    if size == "omni-7b":
        assert plan.frozen == 7_615_616_512 + 639_647_232 - 2 * 3584
    wide = config_of(name, "")
    assert (config.train.epochs, config.lora.to_dict(), config.rrs.to_dict()) == (
        wide.train.epochs,
        wide.lora.to_dict(),
        wide.rrs.to_dict(),
    )
