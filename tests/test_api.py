"""The public functions: answers as transformers gives them, a run from Python, configs by name."""

import copy
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers

import rrs_jax
from helpers.qwen2_audio import prompt_inputs
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, read_jsonl, write_jsonl
from rrs_jax.run import pipeline
from rrs_jax.testing import twin_rows
from rrs_jax.weights.safetensors_io import load_file

NEW_TOKENS = 12


def answers_of(model, folder, files, prompt) -> list[str]:
    """Greedy answers of transformers, one clip at a time, by its own processor."""
    processor = transformers.Qwen2AudioProcessor.from_pretrained(folder)
    answers = []
    for file in files:
        inputs = prompt_inputs(processor, file, prompt)
        with torch.no_grad():
            ids = model.generate(
                **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, top_k=None, temperature=None
            )
        new = ids[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return answers


@pytest.fixture(scope="module")
def config(whole_folder, sound_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("python")
    write_jsonl(path / "manifest.jsonl", twin_rows(sound_files))
    manifest = str(path / "manifest.jsonl")
    return rrs_jax.load_config(
        "qwen2_rrs",
        {
            "model.path": str(whole_folder),
            "model.dtype": "float32",
            "run_dir": str(path / "run"),
            "data.manifest": manifest,
            "data.eval_manifest": manifest,
            "train.epochs": 2,
            "train.learning_rate": 1e-2,
            "evaluate.samples": 1,
            "generate.max_new_tokens": 4,
            "report.representation_epochs": (),
        },
    )


@pytest.fixture(scope="module")
def adapter(config):
    return rrs_jax.train(config)


def test_answers_of_a_trained_adapter_are_those_of_peft_and_transformers(adapter, whole_folder, sound_files):
    base = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(whole_folder)
    untrained = answers_of(base, whole_folder, sound_files[:3], PROMPT_T)
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    expected = answers_of(theirs, whole_folder, sound_files[:3], PROMPT_T)
    model = rrs_jax.load_model(whole_folder, adapter=adapter)
    options = {"greedy": True, "max_new_tokens": NEW_TOKENS}
    assert rrs_jax.generate(model, sound_files[:3], PROMPT_T, **options) == expected
    assert untrained != expected
    questions = [{"audio": sound_files[2], "text": PROMPT_T}, {"audio": sound_files[0], "text": PROMPT_T}]
    assert rrs_jax.generate(model, questions, batch_size=1, **options) == [expected[2], expected[0]]


def test_sampled_answers_follow_the_seed_and_not_the_batch(whole_folder, sound_files):
    model = rrs_jax.load_model(whole_folder)
    questions = [{"text": "What is it?"}, *({"audio": file} for file in sound_files[:3])]
    options = {"max_new_tokens": 6, "temperature": 1.5}
    first = rrs_jax.generate(model, questions, seed=3, **options)
    assert first == rrs_jax.generate(model, questions, seed=3, batch_size=2, **options)
    assert first != rrs_jax.generate(model, questions, seed=4, **options)
    assert rrs_jax.generate(model, []) == []


def test_evaluation_returns_what_it_writes(config, adapter):
    summaries = rrs_jax.evaluate(config)
    assert set(summaries) == {"vanilla", "rrs"}
    assert summaries["vanilla"]["nsi"] is None and summaries["rrs"]["nsi"] is not None
    assert 0 <= summaries["rrs"]["modes"]["audio_text"]["asr"] <= 100


def test_a_strategy_that_trains_nothing_has_no_adapter(config):
    other = config.copy_and_resolve_references()
    other.strategy = "vanilla"
    with pytest.raises(UserError, match="strategy: vanilla trains nothing"):
        rrs_jax.train(other)
    other.strategy, other.train.epochs = "rrs", 0
    with pytest.raises(UserError, match="config: train.epochs is 0"):
        rrs_jax.evaluate(other)


def test_configs_by_name_and_their_mistakes(tmp_path):
    config = rrs_jax.load_config("mini_rrs:smoke", {"run_dir": "mine", "train.epochs": 3})
    assert (config.model.path, config.run_dir, config.train.epochs) == ("mini", "mine", 3)
    with pytest.raises(UserError, match="config: 'mini' is no file; the package has mini_rrs"):
        rrs_jax.load_config("mini")
    with pytest.raises(UserError, match="trian.epochs is no field.*; train.epochs is 0, give"):
        rrs_jax.load_config("mini_rrs", {"trian.epochs": 1, "train.epochs": 0})


def test_functions_that_share_their_names_with_packages_can_be_called_either_way():
    """Before and after the package of that name is imported, in a process of its own."""
    script = """
import rrs_jax
assert callable(rrs_jax.generate) and callable(rrs_jax.train) and callable(rrs_jax.evaluate)
import rrs_jax.train.loop
from rrs_jax.generate import Generator
from rrs_jax.evaluate import measure
assert callable(rrs_jax.train) and rrs_jax.train.loop.train is not None
try:
    rrs_jax.train(rrs_jax.load_config("mini_rrs", {"strategy": "vanilla"}))
except rrs_jax.api.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "strategy: vanilla trains nothing; call rrs_jax.evaluate alone.\n", done.stderr


def test_another_kept_checkpoint_is_exported(config, adapter, tmp_path):
    """Two epochs of one step each: the best is one of them, and their adapters differ."""
    kept = {}
    for which in (1, 2, "last", "best"):
        changed = copy.deepcopy(config)
        changed.export.checkpoint = which
        pipeline.run(changed, ("export",))
        tensors, _ = load_file(Path(config.run_dir) / "export" / "adapter" / "adapter_model.safetensors")
        kept[which] = content_hash(*(tensors[name].tobytes() for name in sorted(tensors)))
    assert kept[1] != kept[2] == kept["last"]
    losses = [row["loss"] for row in read_jsonl(Path(config.run_dir) / "metrics.jsonl")]
    assert kept["best"] == kept[1 + losses.index(min(losses))]
    changed.export.checkpoint = 7
    with pytest.raises(UserError, match="export.checkpoint: 7 was not kept; .* has 1, 2"):
        pipeline.run(changed, ("export",))
