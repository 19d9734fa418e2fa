"""Small random folders as transformers and we read them, the tiny manifest, and both without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import transformers

import rrs_jax
from helpers.tensors import relative_error
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.data.manifest import load_manifest
from rrs_jax.inputs.mel import feature_length
from rrs_jax.testing import (
    write_clips,
    write_manifest,
    write_qwen2_5_omni,
    write_qwen2_audio,
    write_qwen_audio,
)
from rrs_jax.weights.safetensors_io import read_folder

FOLDERS = {
    "qwen2-audio": (write_qwen2_audio, {}, transformers.Qwen2AudioForConditionalGeneration),
    "omni": (write_qwen2_5_omni, {}, transformers.Qwen2_5OmniForConditionalGeneration),
    "omni's thinker": (
        write_qwen2_5_omni,
        {"thinker": True},
        transformers.Qwen2_5OmniThinkerForConditionalGeneration,
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_what_transformers_and_we_load(kind, tmp_path):
    """All its tensors are parameters and all parameters are tensors of it; a clip with a text has one
    representation in both."""
    write, options, model_class = FOLDERS[kind]
    tensors = write(tmp_path / "model", seed=3, **options)
    reference = model_class.from_pretrained(tmp_path / "model")
    loaded = sorted(parameter.detach().numpy().tobytes() for parameter in reference.parameters())
    assert loaded == sorted(array.tobytes() for array in tensors.values())

    model = rrs_jax.load_model(tmp_path / "model")
    clip = write_clips(tmp_path)[1]
    reps = rrs_jax.extract_reps(model, rrs_jax.make_batch(model, [clip], PROMPT_T))
    waveform = soundfile.read(clip, dtype="float32")[0]
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "model")
    features = extractor(waveform, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    count = model.processor.mel.token_count(feature_length(len(waveform)))
    ids = torch.tensor([model.processor.encode(PROMPT_T, [count])])
    whole = getattr(reference, "thinker", reference)
    with torch.no_grad():
        states = whole(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=features["input_features"],
            feature_attention_mask=features["attention_mask"],
            output_hidden_states=True,
        ).hidden_states
    assert relative_error(reps, states[-1][:, -1]) < 1e-4


@pytest.mark.parametrize("write", [write_qwen2_audio, write_qwen2_5_omni, write_qwen_audio])
def test_the_seed_decides_the_weights_and_fields_the_sizes(write, tmp_path):
    tensors = write(tmp_path / "a", seed=1)
    on_disk = read_folder(tmp_path / "a")
    assert on_disk.keys() == tensors.keys()
    again, other = write(tmp_path / "b", seed=1), write(tmp_path / "c", seed=2)
    for name, array in tensors.items():
        np.testing.assert_array_equal(on_disk[name].array(), array)
        np.testing.assert_array_equal(again[name], array)
        assert not np.array_equal(other[name], array)
    deeper = write(tmp_path / "d", num_hidden_layers=5)
    added = {name for name in deeper.keys() - tensors.keys()}
    assert added and all(".3." in name or ".4." in name for name in added)


def test_the_manifest_is_one(tmp_path):
    rows = load_manifest(write_manifest(tmp_path / "data"))
    assert [row["label"] for row in rows] == ["harmful", "benign"] * 4
    assert [row["pair_id"] for row in rows] == [f"p{i // 2}" for i in range(8)]
    for row in rows:
        waveform, rate = soundfile.read(tmp_path / "data" / row["audio"])
        assert rate == 16_000 and 0.5 < len(waveform) / rate < 2 and np.abs(waveform).max() > 0.1


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = sys.modules["pytest"] = None  # both imports fail
import rrs_jax
from rrs_jax import testing
from rrs_jax.inputs.processor import Processor
found = {}
for write in (testing.write_qwen2_audio, testing.write_qwen2_5_omni, testing.write_qwen_audio):
    write(write.__name__)
    found[write.__name__] = Processor.from_folder(write.__name__).token_id("I")
clips = testing.write_clips(".")
model = rrs_jax.load_model("write_qwen2_audio")
batch = rrs_jax.make_batch(model, clips[:2], "Answer.")
print(json.dumps(found), rrs_jax.extract_reps(model, batch).shape)
"""


def test_torch_is_not_needed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    tokens, shape = done.stdout.strip().split(" (")
    assert len(json.loads(tokens)) == 3 and shape == "2, 48)"
