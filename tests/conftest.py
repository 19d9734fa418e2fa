"""Small random Qwen2-Audio folders, written by transformers with every size odd or unequal."""

import atexit
import os
import shutil
import signal
import tempfile

from xla_flags import UNOPTIMISED

# Eight devices on the CPU, and no optimisation: the tests' time is compilation. For the same reason all
# tests, and the processes that they start, share what is compiled; pytest's first process makes the folder
# and its workers find it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled = tempfile.mkdtemp(prefix="rrs-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {UNOPTIMISED}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest
import torch
import transformers

torch.set_num_threads(1)

# A shell has what it starts in the background ignore Ctrl-C, and the processes that tests start and interrupt
# with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def small_config(**text) -> transformers.Qwen2AudioConfig:
    values = (
        dict(
            hidden_size=48,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=136,
            rms_norm_eps=1e-5,
            max_position_embeddings=512,
            rope_theta=1000.0,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
        | text
    )
    return transformers.Qwen2AudioConfig(
        audio_config=dict(
            d_model=24,
            encoder_layers=2,
            encoder_attention_heads=3,
            encoder_ffn_dim=40,
            num_mel_bins=12,
            max_source_positions=1500,
        ),
        text_config=dict(model_type="qwen2", **values),
        audio_token_index=130,
        tie_word_embeddings=values["tie_word_embeddings"],
    )


def twin_rows(clips) -> list[dict]:
    """A manifest's rows, harmful and benign by turns, one for each clip."""
    return [
        {
            "id": f"q{i}",
            "pair_id": f"p{i // 2}",
            "label": ("harmful", "benign")[i % 2],
            "category": "c",
            "question": f"How do I answer you {i}?",
            "audio": str(clip),
        }
        for i, clip in enumerate(clips)
    ]


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random, norms and biases too: an unused one would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            sample = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(sample * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


def make_reference(**text) -> transformers.Qwen2AudioForConditionalGeneration:
    model = transformers.Qwen2AudioForConditionalGeneration(small_config(**text)).float().eval()
    randomise(model)
    model.tie_weights()
    return model


@pytest.fixture(scope="session")
def reference():
    """An untied torch model in float32."""
    return make_reference()


@pytest.fixture(scope="session")
def folder(reference, tmp_path_factory):
    """Its folder, in two shards."""
    path = tmp_path_factory.mktemp("model")
    reference.save_pretrained(path, max_shard_size="60KB")
    return path


def relative_error(value, expected) -> float:
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
