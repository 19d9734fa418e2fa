"""Arithmetic of a run: questions, floating-point operations, seconds, bytes. Estimates, from shapes alone."""

import dataclasses
import math
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rrs_jax.evaluate.choice import chosen_rows
from rrs_jax.files import read_jsonl
from rrs_jax.parallel import parameter_sharding
from rrs_jax.strategy_table import STRATEGY_TABLE

STARTER = {
    "categories": 14, "pairs_per_category": 20, "eval_pairs_per_category": 10, "borderline": 120, "everyday": 140,
    "contrast": 160,
}  # fmt: skip
CLIP_SECONDS = 3.0  # of the starter set's questions, before they are spoken
PROMPT_TOKENS = 45  # chat template, system prompt and t
END_TOKENS = 15  # of a prompt, its text and the template behind it
OPENING_TOKENS = 20  # of every prompt, before its clip: template and system prompt
AUDIO_TOKENS_A_SECOND = 25
ENCODER_POSITIONS_A_SECOND = 50
SPEECH_TIMES_REAL_TIME = 38.0  # the starter set's voice on one core
EFFICIENCY = 0.5  # what a whole model reaches of the measured matrix product

# Elements a token and layer that wait for the backward pass, as multiples of (hidden, mlp) width; fitted to
# the temporary memory of compiled 7 B steps: 14.3, 6.1 and 1.1 GiB at 2,304 tokens.
SAVED = {"none": (15, 4), "dots": (6, 2), "lean": (6, 0), "full": (2, 0)}
HEADROOM = 1.2  # over what is saved: workspaces, gradients, and what the allocator cannot join


# Operations for which there would have been time while one program is traced, lowered and compiled: about 3 s at 330
# TFLOP/s on an H100, 0.5 s at 0.1 TFLOP/s on two CPU cores.
PROGRAM_FLOPS = {"gpu": 1e15, "cpu": 5e10}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Counts of questions, and their clips' mean seconds. `spoken`: the clips are there already."""

    train: int
    harmful: int
    benign: int
    borderline: int
    seconds: float
    spoken: bool

    @property
    def evaluated(self) -> int:
        return self.harmful + self.benign + self.borderline

    @property
    def tokens(self) -> int:
        """Decoder tokens of a spoken question with its prompt."""
        return round(PROMPT_TOKENS + AUDIO_TOKENS_A_SECOND * self.seconds)


@dataclasses.dataclass(frozen=True)
class DeviceRate:
    """Measured on one device: FLOP a second in a matrix product, bytes a second through memory."""

    flops: float
    bandwidth: float


def count_questions(data: ConfigDict, asked_of: ConfigDict, written: Path, written_eval: Path) -> Sizes:
    """From the run's own manifests where they are written, or the config's, or the starter set's numbers."""

    def starter(name: str) -> int:
        return min(STARTER[name] if data[name] is None else data[name], STARTER[name])

    categories = starter("categories")
    training = written if written.is_file() else data.manifest
    rows = read_jsonl(training) if training else []
    pairs = categories * starter("pairs_per_category")
    singles = starter("everyday") + starter("contrast")
    added = singles if data.manifest and not written.is_file() else 0
    train = len(rows) + added if training else (2 * pairs + singles) * data.voices_per_question
    evaluation = written_eval if written_eval.is_file() else data.eval_manifest
    if evaluation:
        asked = chosen_rows(read_jsonl(evaluation), asked_of.split, asked_of.limit)
        sets = [
            sum(row.get("label") == label for row in asked) for label in ("harmful", "benign", "borderline")
        ]
    else:
        asked, pairs = [], categories * starter("eval_pairs_per_category")
        sets = [pairs, pairs, starter("borderline")]
        if asked_of.split != "all":
            sets = [-(-size // 2) for size in sets]
    seconds = [row["seconds"] for row in rows + asked if row.get("seconds")]
    return Sizes(
        train,
        *(size if asked_of.limit is None else min(size, asked_of.limit) for size in sets),
        seconds=sum(seconds) / len(seconds) if seconds else CLIP_SECONDS,
        spoken=bool(rows) and bool(asked) and not added and all(row.get("audio") for row in rows + asked),
    )


def decoder_flops(text, layers: int | None = None) -> float:
    """Of one token on its way through the decoder's matrices, or those of so many `layers`."""
    layer = sum(rows * columns for rows, columns in text.linears().values())
    return 2 * layer * (text.num_hidden_layers if layers is None else layers)


def lower_layers(config: ConfigDict) -> int:
    """Layers below the first adapter whose hidden states a run computes once (`rrs_jax.floor`), 0 for none.

    Of the strategies only RRS reads nothing but the drawn prompts' last states. Fine-tuning and more positions have
    answers behind the prompts, which are not known when the states are made; rerouting compares states behind layers
    that may lie below.
    """
    serves = STRATEGY_TABLE[config.strategy].module == "rrs" and config.rrs.positions == 1
    return config.lora.layers if serves and config.train.lower_states_gib and config.lora.layers != "all" else 0


def answers_alike(config: ConfigDict) -> bool:
    """Whether evaluation asks the model before training and the trained one, and has both compute alike.

    On a CPU alone. A GPU adds an adapter's output to the product before it rounds to 16 bit, so that adapters of zeros
    round otherwise than none; and it computes layers in less time than their keys and values take to the host and back.
    """
    both = STRATEGY_TABLE[config.strategy].trains and config.evaluate.vanilla and not config.endpoint.url
    return both and jax.default_backend() == "cpu"


def shared_layers(config: ConfigDict) -> int:
    """Layers below the first adapter whose hidden states, keys and values evaluation computes once for both models, 0 for
    none."""
    kept = answers_alike(config) and config.train.lower_states_gib and config.lora.layers != "all"
    return config.lora.layers if kept else 0


def state_size(text, kept_layers: int = 0) -> int:
    """Numbers of one token's hidden state and its keys and values in so many layers."""
    return text.hidden_size + 2 * kept_layers * text.num_key_value_heads * text.head_dim


def encoder_flops(audio) -> float:
    """Of one position on its way through the encoder's matrices; there are two mel frames to a position."""
    return 2 * audio.encoder_layers * (4 * audio.d_model**2 + 2 * audio.d_model * audio.encoder_ffn_dim)


def program_price(flops: float, devices: int = 1) -> float:
    """Positions that `devices` could have worked on while a program is compiled; `flops`: of one position, 0 where an
    encoder has no layers."""
    return PROGRAM_FLOPS.get(jax.default_backend(), PROGRAM_FLOPS["gpu"]) * devices / max(flops, 1.0)


def stage_seconds(
    config: ConfigDict, model_config, sizes: Sizes, responses: int, rate: DeviceRate, devices: int
) -> dict:
    """Seconds of each stage, without loading and compilation; evaluation as if no answer ended early."""
    text, audio = model_config.text, model_config.audio
    forward = decoder_flops(text)  # a token
    differentiated = text.num_hidden_layers - (0 if config.lora.layers == "all" else config.lora.layers)
    backward = decoder_flops(text, differentiated)  # frozen matrices pass a gradient on and have none of their own
    encode = encoder_flops(audio) * ENCODER_POSITIONS_A_SECOND * sizes.seconds  # a clip
    flops = rate.flops * EFFICIENCY * devices
    weights = forward / 2 * jnp.dtype(config.model.dtype).itemsize
    rows = config.generate.batch_size
    token = max(forward * rows / flops, weights / (rate.bandwidth * devices))  # one more token for every row
    clips = 0 if sizes.spoken else sizes.train + sizes.evaluated
    asked, drawn = 1.5 * sizes.tokens, config.train.epochs * sizes.tokens  # a training question's, in the two stages
    extracting, training = asked * forward, drawn * (forward + backward)
    answering = sizes.tokens * forward
    room = config.train.lower_states_gib * 2**30 / jnp.dtype(config.model.dtype).itemsize
    if layers := lower_layers(config):
        below, prompts = decoder_flops(text, layers), 1.5 + config.train.epochs
        once = sizes.tokens - OPENING_TOKENS + (prompts - 1) * END_TOKENS
        if sizes.train * once * state_size(text) <= room:
            extracting, training = extracting + (once - asked) * below, training - drawn * below
    if layers := shared_layers(config):
        prompts = responses / 2 / config.evaluate.samples
        if prompts * sizes.tokens * state_size(text, layers) <= room:
            answering -= sizes.tokens * decoder_flops(text, layers) / 2
    return {
        "data": clips * sizes.seconds / SPEECH_TIMES_REAL_TIME,
        # Harmful questions under t and with the request to refuse, benign ones under t.
        "extract": sizes.train * (encode + extracting) / flops,
        "train": sizes.train * training / flops,
        "evaluate": (sizes.evaluated * encode + responses * answering) / flops
        + math.ceil(responses / rows) * config.generate.max_new_tokens * token,
        "export": 2 * weights / rate.bandwidth if config.export.merged else 0.0,
        "report": 0.0,
    }


def memory_bytes(
    config: ConfigDict, model_config, frozen: list, adapter: list, sizes: Sizes, mesh: Mesh
) -> dict:
    """Bytes on one device, by purpose. `frozen`, `adapter`: (dotted path, shape-dtype) of each parameter."""
    text, item = model_config.text, jnp.dtype(config.model.dtype).itemsize

    def shard_bytes(path: str, leaf) -> int:
        sharding = parameter_sharding(mesh, path, leaf.shape)
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    weights = sum(shard_bytes(*leaf) for leaf in frozen)
    adapters = 4 * sum(shard_bytes(*leaf) for leaf in adapter)
    embeddings = (sizes.train + sizes.evaluated) * AUDIO_TOKENS_A_SECOND * sizes.seconds * text.hidden_size * item
    remat = config.train.remat
    if remat == "auto":
        remat = fitting_remat(config, text, sizes.tokens, parts, device_memory() - weights - adapters - embeddings)
    # The samples of one question share its prompt's slots.
    slots = sizes.tokens / config.evaluate.samples + config.generate.max_new_tokens
    cached = {"auto": item, "bfloat16": 2, "float32": 4, "int8": 1 + 4 / text.head_dim}[config.generate.cache_dtype]
    entry = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * cached
    flight = math.ceil(config.generate.batch_size / parts)
    return {
        "weights": weights,
        "adapter, gradient, moments": adapters,
        "audio embeddings": embeddings,
        "activations of a training step": activation_bytes(config, text, sizes.tokens, parts, remat) if adapter else 0,
        "key-value cache and logits": flight * (slots * entry + 2 * text.vocab_size * 4),
    }


def activation_bytes(config: ConfigDict, text, tokens: int, parts: int, remat: str) -> float:
    """What waits for the backward pass of a micro-batch whose rows have `tokens`, on one of the `parts` that cut it, and
    the copies of 8-bit layers that are set apart for it."""
    item = jnp.dtype(config.model.dtype).itemsize
    rows = math.ceil(config.train.batch_size / config.train.gradient_accumulation / parts)
    layers = text.num_hidden_layers - (0 if config.lora.layers == "all" else config.lora.layers)
    hidden, mlp = SAVED[remat]
    saved = layers * (hidden * text.hidden_size + mlp * text.intermediate_size)
    if remat == "lean":  # and one layer's gate and up at a time computed again
        saved += SAVED["dots"][1] * text.intermediate_size
    if remat == "full":  # and one layer at a time computed again
        saved += SAVED["none"][0] * text.hidden_size + SAVED["none"][1] * text.intermediate_size
    activations = rows * tokens * saved * item
    if jax.default_backend() != "gpu" or item == 4:  # no flash attention: scores and weights are whole matrices
        scores = 2 * rows * text.num_attention_heads * tokens**2 * 4
        activations += scores * (layers if remat == "none" else 1)
    apart = config.train.unroll and text.quantize == "float8" and jax.device_count() == 1  # `TrainStep.renew`
    return activations + (2 * text.num_hidden_layers * sum(a * b for a, b in text.linears().values()) if apart else 0)


def fitting_remat(config: ConfigDict, text, tokens: int, parts: int, free: float) -> str:
    """The first of `dots` and `lean` whose values of a micro-batch fit into `free` bytes with some room to spare, else
    `full`."""
    for remat in ("dots", "lean"):
        if activation_bytes(config, text, tokens, parts, remat) * HEADROOM <= free:
            return remat
    return "full"


def free_memory() -> float:
    """Bytes of one device that nothing takes up; of a CPU, the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return device_memory() - stats.get("bytes_in_use", 0)


def device_memory() -> float:
    """Bytes that one device offers; of a CPU, the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_device(dtype) -> DeviceRate:
    """Times one matrix product and one copy, well under a second each."""
    width, elements = (8192, 2**28) if jax.default_backend() == "gpu" else (1024, 2**24)
    matrix, vector = jnp.ones((width, width), dtype), jnp.ones((elements,), jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    return DeviceRate(
        flops=2 * width**3 / _seconds(lambda: product(matrix, matrix)),
        bandwidth=2 * 4 * elements / _seconds(lambda: copy(vector)),
    )


def _seconds(call) -> float:
    """The best of three, after the compilation."""
    jax.block_until_ready(call())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)
