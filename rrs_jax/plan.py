"""The dry run: what a run would do, how large it is, and about how long it takes. Nothing is loaded or written."""

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from rrs_jax.config import MINI, flatten
from rrs_jax.errors import UserError
from rrs_jax.files import read_json, read_jsonl
from rrs_jax.models.lora import LoRAConfig, LoRAParam
from rrs_jax.parallel import make_mesh, parameter_sharding
from rrs_jax.run_folder import RunFolder
from rrs_jax.stages import STAGES
from rrs_jax.weights.load import ARCHITECTURES, abstract_model, read_config

# What nothing on disk says yet; the page of numbers is labelled an estimate for their sake.
CATEGORIES, PAIRS, EVAL_PAIRS, BORDERLINE = 14, 20, 10, 120  # the starter set
CLIP_SECONDS = 3.0
PROMPT_TOKENS = 45  # chat template, system prompt and t
AUDIO_TOKENS_A_SECOND = 25
ENCODER_POSITIONS_A_SECOND = 50
SPEECH_TIMES_REAL_TIME = 38.0  # one core
EFFICIENCY = 0.5  # of the measured matrix product, reached by whole layers
# Elements of a layer's activations that wait for the backward pass, as multiples of (hidden, mlp) width, a token.
SAVED = {"none": (16, 6), "dots": (8, 5), "full": (2, 0)}
MINI_CONFIG = {
    "model_type": "qwen2_audio",
    "audio_config": {
        "d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "num_mel_bins": 80,
        "max_source_positions": 1500,
    },
    "text_config": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Counts of questions. `measured`: the seconds come from a manifest, not from an assumption."""

    train: int
    harmful: int
    benign: int
    borderline: int
    seconds: float
    measured: bool

    @property
    def tokens(self) -> int:
        """Decoder tokens of a spoken question with its prompt."""
        return round(PROMPT_TOKENS + AUDIO_TOKENS_A_SECOND * self.seconds)


@dataclasses.dataclass(frozen=True)
class DeviceRate:
    """Measured on one device: FLOP a second in a matrix product, bytes a second through memory."""

    flops: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """All bytes are a device's. `stages`: (name, what, "done" or "to do", seconds)."""

    stages: tuple[tuple[str, str, str, float], ...]
    sizes: Sizes
    steps: int
    responses: int
    frozen: int
    trainable: int
    memory: dict[str, float]
    memory_there: float
    devices: str
    rate: DeviceRate

    @property
    def memory_needed(self) -> float:
        weights = self.memory["weights"] + self.memory["adapter, gradient, moments"] + self.memory["audio embeddings"]
        return weights + max(self.memory["activations of a training step"], self.memory["key-value cache"])


def print_plan(config: ConfigDict, stages: Sequence[str]) -> None:
    print(format_plan(make_plan(config, stages), config))


def make_plan(config: ConfigDict, stages: Sequence[str], rate: DeviceRate | None = None) -> Plan:
    """Reads small files only: the model folder's config.json (for a hub id, fetched), manifests, marks of stages."""
    values = model_config(config.model.path)
    dtype = jnp.dtype(config.model.dtype)
    lora = None
    if config.strategy != "vanilla":
        first = 0 if config.lora.layers == "all" else config.lora.layers
        lora = LoRAConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets), first)
    model, _ = abstract_model(values, dtype, lora)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    _, adapter, frozen = nnx.split(model, LoRAParam, ...)
    frozen, adapter = (_leaves(state) for state in (frozen, adapter))
    sizes = data_sizes(config)
    rate = rate or measure_device(dtype)
    steps = math.ceil(sizes.train / config.train.batch_size) * config.train.epochs
    spoken = len([mode for mode in config.evaluate.over_refusal_modes])
    responses = sizes.harmful * len(config.evaluate.modes) + (sizes.benign + sizes.borderline) * spoken
    responses *= config.evaluate.samples * (1 + (config.evaluate.vanilla and lora is not None))
    seconds = stage_seconds(config, model.config, sizes, responses, rate, mesh.size)
    folder = Path(config.run_dir)
    return Plan(
        stages=tuple((name, STAGES[name].what, _state(folder, config, name), seconds[name]) for name in stages),
        sizes=sizes,
        steps=steps if lora else 0,
        responses=responses,
        frozen=sum(math.prod(leaf.shape) for _, leaf in frozen),
        trainable=sum(math.prod(leaf.shape) for _, leaf in adapter),
        memory=memory_bytes(config, model.config, frozen, adapter, sizes, mesh),
        memory_there=device_memory(),
        devices=f"{mesh.size} × {jax.devices()[0].device_kind}, " + " × ".join(f"{a} {n}" for a, n in mesh.shape.items()),
        rate=rate,
    )


def model_config(path: str) -> dict:
    """config.json of a folder, of a hub id, or of mini before it is made."""
    if path == MINI:
        return MINI_CONFIG
    if Path(path).is_dir():
        return read_config(Path(path))
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(f"model.path: {path} is no folder; give a Hugging Face model folder or a hub id OWNER/NAME.")
    from huggingface_hub import hf_hub_download

    try:
        return read_config(Path(hf_hub_download(path, "config.json")).parent)
    except UserError:
        raise
    except Exception as error:  # huggingface_hub raises a dozen kinds, all of which mean: not to be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model.path: {path} is no folder and could not be fetched from the hub ({reason}).") from error
