"""From sound files to an adapter on a small random model: the public functions and a whole run."""

import json

import numpy as np
import peft
import pytest
import soundfile
import torch
import transformers
from conftest import randomise, relative_error, small_config, twin_rows
from test_inputs_processor import write_tokenizer

import rrs_jax
from rrs_jax.config import default_config
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.run import pipeline

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model folder as a user has it: weights, tokenizer, feature extractor, generation config."""
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids = {
        name: tokenizer.convert_tokens_to_ids(name) for name in ("<|AUDIO|>", "<|im_end|>", "<|endoftext|>")
    }
    config = small_config(vocab_size=len(tokenizer) + 8)
    config.audio_config.num_mel_bins = 80
    config.audio_token_id = config.audio_token_index = ids["<|AUDIO|>"]
    model = transformers.Qwen2AudioForConditionalGeneration(config).float().eval()
    randomise(model)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    model.save_pretrained(path)
    transformers.WhisperFeatureExtractor(feature_size=80, return_attention_mask=True).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Noise under a slow envelope, of odd lengths."""
    path = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    files = []
    for i, samples in enumerate((9_001, 23_456, 16_000, 31_337, 12_345, 20_000, 8_765, 15_555)):
        waveform = rng.normal(size=samples) * 0.1 * np.sin(np.arange(samples) / 900) ** 2
        files.append(path / f"{i}.wav")
        soundfile.write(files[-1], waveform, RATE, subtype="FLOAT")
    return files


def reference_representations(model, folder, files, prompt) -> np.ndarray:
    """Final-norm state at the last token by transformers' own processor and model, one clip at a time."""
    processor = transformers.Qwen2AudioProcessor.from_pretrained(folder)
    content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    rows = []
    for file in files:
        inputs = processor(
            text=text,
            audio=[soundfile.read(file, dtype="float32")[0]],
            sampling_rate=RATE,
            return_tensors="pt",
        )
        with torch.no_grad():
            rows.append(model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].numpy())
    return np.stack(rows)


def test_representations_from_sound_files_equal_transformers(folder, clips):
    reference = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    model = rrs_jax.load_model(folder)
    batch = rrs_jax.make_batch(model, clips[:3], PROMPT_T)
    reps = rrs_jax.extract_reps(model, batch)
    assert reps.shape == (3, 48) and reps.dtype == np.float32
    assert relative_error(reps, reference_representations(reference, folder, clips[:3], PROMPT_T)) < 1e-4


def test_bad_clips_are_listed_at_once(folder, clips, tmp_path):
    model = rrs_jax.load_model(folder)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    with pytest.raises(UserError) as error:
        rrs_jax.make_batch(model, [clips[0], tmp_path / "silent.wav", tmp_path / "absent.wav"], PROMPT_T)
    assert "silent.wav" in str(error.value) and "absent.wav" in str(error.value)


@pytest.fixture(scope="module")
def run(folder, clips, tmp_path_factory):
    """A finished run of two epochs on eight clips."""
    path = tmp_path_factory.mktemp("run")
    rows = twin_rows(clips)
    write_jsonl(path / "manifest.jsonl", rows)
    config = default_config()
    config.model.path, config.model.dtype, config.run_dir = str(folder), "float32", str(path / "run")
    config.data.manifest = config.data.eval_manifest = str(path / "manifest.jsonl")
    config.train.epochs, config.train.batch_size, config.train.learning_rate = 2, 8, 1e-2
    config.evaluate.samples, config.generate.max_new_tokens = 2, 4
    config.rrs.top_m = 25
    config.export.merged = True
    pipeline.run(config, ("data", "extract", "train", "evaluate", "export", "report"))
    return config, path / "run"


def test_rrs_plus_adds_its_questions_to_a_manifest(folder, clips, tmp_path, monkeypatch):
    """Without them its rate and its weight of harmful questions would make a model that refuses
    everything."""

    def spoken(texts, **_):
        return [(clips[place % len(clips)], 1.0) for place, _ in enumerate(texts)]

    monkeypatch.setattr(pipeline, "speak_all", spoken)
    rows = twin_rows(clips)
    write_jsonl(tmp_path / "manifest.jsonl", rows)
    config = default_config()
    config.strategy, config.model.path, config.run_dir = "rrs_plus", str(folder), str(tmp_path / "run")
    config.data.manifest = config.data.eval_manifest = str(tmp_path / "manifest.jsonl")
    config.data.contrast = 9
    pipeline.run(config, ("data",))
    made = read_jsonl(tmp_path / "run" / "data" / "manifest.jsonl")
    assert [row["id"] for row in made[: len(rows)]] == [row["id"] for row in rows]
    names = [row["id"].split("-")[0] for row in made[len(rows) :]]
    assert names == ["everyday"] * 140 + ["contrast"] * 9
    assert {row["label"] for row in made[len(rows) :]} == {"benign"} and all(row["audio"] for row in made)
    assert [row.get("role") for row in made[len(rows) :]] == ["keep"] * 140 + [None] * 9
    assert len(read_jsonl(tmp_path / "run" / "data" / "eval" / "manifest.jsonl")) == len(rows)

    write_jsonl(tmp_path / "manifest.jsonl", [rows[0] | {"id": made[-1]["id"]}, *rows[1:]])
    config.run_dir = str(tmp_path / "again")
    with pytest.raises(UserError, match="give it another id, or set both fields to 0"):
        pipeline.run(config, ("data",))


def test_a_run_leaves_the_files_it_promises(run):
    config, path = run
    metrics = read_jsonl(path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2] and metrics[0]["penalty"] == 0 < metrics[1]["penalty"]
    assert len(read_jsonl(path / "eval" / "rrs" / "responses.jsonl")) == (4 * 3 + 4) * 2
    summary = read_json(path / "eval" / "rrs" / "summary.json")
    assert set(summary["modes"]) == {"audio_text", "text_only", "audio_only"} and summary["nsi"] is not None
    assert "| rrs |" in (path / "report" / "table.md").read_text()
    assert "rank" in (path / "export" / "adapter" / "README.md").read_text()


def test_the_exported_adapter_gives_the_trained_representations(run, folder, clips):
    """Loaded by PEFT onto the original model; and the merged folder by our own loader."""
    _, path = run
    base = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    before = reference_representations(base, folder, clips[:2], PROMPT_T)
    adapted = peft.PeftModel.from_pretrained(base, path / "export" / "adapter").eval()
    expected = reference_representations(adapted, folder, clips[:2], PROMPT_T)
    model = rrs_jax.load_model(path / "export" / "merged")
    reps = rrs_jax.extract_reps(model, rrs_jax.make_batch(model, clips[:2], PROMPT_T))
    assert relative_error(reps, expected) < 1e-4
    assert relative_error(before, expected) > 1e-2


def test_the_same_command_does_nothing_twice_and_evaluation_alone_restores_the_adapter(run):
    config, path = run
    trained = json.loads((path / ".done" / "train.json").read_text())["adapter"]
    responses = path / "eval" / "rrs" / "responses.jsonl"
    written = responses.read_text()
    pipeline.run(config, ("data", "extract", "train", "evaluate", "export", "report"))
    assert responses.read_text() == written
    config.evaluate.judges = ("phrases",)
    pipeline.run(config, ("evaluate",))
    assert responses.read_text() == written  # other judges, the same responses
    session = pipeline.Session(config, pipeline.RunFolder(config.run_dir, config))
    assert pipeline.adapter_hash(pipeline.trained_model(session)) == trained


def test_other_questions_and_settings_have_folders_of_their_own(run, clips, tmp_path):
    """In the finished run: its own questions beside silence, and a question set with its own clips, judged by
    the run's own model too."""
    config, path = run
    before = (path / "eval" / "rrs" / "summary.json").read_text()
    config.evaluate.setting, config.evaluate.vanilla = ("silence",), False
    pipeline.run(config, ("evaluate",))
    summary = read_json(path / "eval" / "rrs-silence" / "summary.json")
    assert [mode for mode, block in summary["modes"].items() if block] == ["text_only"]
    spoken = {
        row["sample"]: row
        for row in read_jsonl(path / "eval" / "rrs" / "responses.jsonl")
        if row["mode"] == "text_only"
    }
    beside = {row["sample"]: row for row in read_jsonl(path / "eval" / "rrs-silence" / "responses.jsonl")}
    assert any(spoken[sample]["response"] != beside[sample]["response"] for sample in spoken)
    rows = [
        {"question": f"How do I ask {i}?", "label": label, "audio": str(clips[i])}
        for i, label in enumerate(("harmful", "borderline"))
    ]
    write_jsonl(tmp_path / "own.jsonl", rows)
    config.evaluate.setting, config.evaluate.vanilla = ("spoken",), True
    config.evaluate.questions = (f"jsonl:{tmp_path / 'own.jsonl'}",)
    config.evaluate.judges = ("phrases", "own:jailbreakbench")
    pipeline.run(config, ("evaluate",))
    summary = read_json(path / "eval" / "rrs-jsonl" / "summary.json")
    assert summary["modes"]["audio_only"]["responses"] == 2 and summary["orr"] is None
    assert summary["borderline_orr"]["responses"] == 2
    own = summary["other_judges"]["own:jailbreakbench"]["modes"]["audio_text"]
    assert own["responses"] + own["unjudged"] == 2
    comparison = read_json(path / "eval" / "rrs-jsonl" / "compared_to_vanilla.json")
    assert comparison["judges"]["phrases"]["harmful"]["audio_text"]["queries"] == 1
    assert (path / "eval" / "rrs" / "summary.json").read_text() == before
