"""Arithmetic of a run: questions, floating-point operations, seconds, bytes. Estimates, from shapes alone."""

import dataclasses
import math
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rrs_jax.data.authors_questions import manifest_rows, read_authors
from rrs_jax.data.manifest import LABELS, load_manifest
from rrs_jax.data.starter import choose_rows
from rrs_jax.distributed.memory import device_memory
from rrs_jax.distributed.mesh import parameter_sharding
from rrs_jax.evaluate.question_subset import chosen_rows
from rrs_jax.generate.memory import FlightPlan
from rrs_jax.models.flops import decoder_flops, encoder_flops, state_size
from rrs_jax.run.data_stage import added_choice, evaluation_choice, training_choice
from rrs_jax.run.everyday import read_everyday, with_everyday
from rrs_jax.run.lower_layers import lower_layers, shared_layers
from rrs_jax.train.memory import activation_bytes, fitting_remat

CLIP_SECONDS = 3.0  # of the built-in's questions, before they are spoken
PROMPT_TOKENS = 45  # chat template, system prompt and t
END_TOKENS = 15  # of a prompt, its text and the template behind it
OPENING_TOKENS = 20  # of every prompt, before its clip: template and system prompt
AUDIO_TOKENS_A_SECOND = 25
ENCODER_POSITIONS_A_SECOND = 50
SPEECH_TIMES_REAL_TIME = 38.0  # the starter set's voice on one core
EFFICIENCY = 0.5  # what a whole model reaches of the measured matrix product


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Counts of questions, and their clips' mean seconds. `spoken`: the clips are there already."""

    train: int
    harmful: int
    benign: int
    borderline: int
    everyday: int
    seconds: float
    spoken: bool

    @property
    def evaluated(self) -> int:
        return self.harmful + self.harmless

    @property
    def harmless(self) -> int:
        """All evaluation questions but the harmful ones."""
        return self.benign + self.borderline + self.everyday

    @property
    def tokens(self) -> int:
        """Decoder tokens of a spoken question with its prompt."""
        return round(PROMPT_TOKENS + AUDIO_TOKENS_A_SECOND * self.seconds)


@dataclasses.dataclass(frozen=True)
class DeviceRate:
    """Measured on one device: FLOP a second in a matrix product, bytes a second through memory."""

    flops: float
    bandwidth: float


def count_questions(config: ConfigDict, written: Path, written_eval: Path) -> Sizes:
    """Counts from the run's own manifests where they are written, or the config's, or the built-in
    questions."""
    data = config.data
    training = written if written.is_file() else data.manifest
    rows = _rows(Path(training), data) if training else []
    if training:
        added = 0 if written.is_file() else len(choose_rows(added_choice(config)))
        train = len(rows) + added
    else:
        added, train = 0, len(choose_rows(training_choice(config))) * data.voices_per_question
    evaluation = written_eval if written_eval.is_file() else data.eval_manifest
    asked = _rows(Path(evaluation), data) if evaluation else choose_rows(evaluation_choice(config))
    asked = chosen_rows(asked, config.evaluate.limit)
    everyday = read_everyday(config) if "spoken" in config.evaluate.setting else []
    labels = Counter(row["label"] for row in with_everyday(asked, everyday, config.evaluate.limit))
    seconds = [row["seconds"] for row in rows + asked if row.get("seconds")]
    return Sizes(
        train,
        *(labels[label] for label in LABELS),
        seconds=sum(seconds) / len(seconds) if seconds else CLIP_SECONDS,
        spoken=bool(rows) and bool(asked) and not added and all(row.get("audio") for row in rows + asked),
    )


def _rows(manifest: Path, data: ConfigDict) -> list[dict]:
    if manifest.is_dir():
        return manifest_rows(read_authors(manifest).pairs)
    return load_manifest(manifest, need_audio=False, skip_bad=data.bad_rows == "skip")


def stage_seconds(
    config: ConfigDict,
    model_config,
    sizes: Sizes,
    responses: int,
    in_flight: int,
    rate: DeviceRate,
    devices: int,
) -> dict:
    """Seconds of each stage, without loading and compilation; evaluation as if no answer ended early, with
    so many `in_flight`."""
    text, audio = model_config.text, model_config.audio
    forward = decoder_flops(text)  # a token
    encode = encoder_flops(audio) * ENCODER_POSITIONS_A_SECOND * sizes.seconds  # a clip
    flops = rate.flops * EFFICIENCY * devices
    weights = forward / 2 * jnp.dtype(config.model.dtype).itemsize
    token = max(  # one more token for every answer in flight
        forward * in_flight / flops, weights / (rate.bandwidth * devices)
    )
    clips = 0 if sizes.spoken else sizes.train + sizes.evaluated
    extracting, training, answering = question_flops(config, text, sizes, responses)
    return {
        "data": clips * sizes.seconds / SPEECH_TIMES_REAL_TIME,
        # Harmful questions under t and with the request to refuse, benign ones under t.
        "extract": sizes.train * (encode + extracting) / flops,
        "train": sizes.train * training / flops,
        "evaluate": (
            (sizes.evaluated * encode + responses * answering) / flops
            + math.ceil(responses / in_flight) * config.generate.max_new_tokens * token
        ),
        "export": 2 * weights / rate.bandwidth if config.export.merged else 0.0,
        "report": 0.0,
    }


def question_flops(config: ConfigDict, text, sizes: Sizes, responses: int) -> tuple[float, float, float]:
    """Operations of the decoder for a training question in the stages extract and train, and for an
    evaluation question up to its answer, less what lower layers' states save that are kept.

    text: the decoder's config.
    """
    forward = decoder_flops(text)  # a token
    differentiated = text.num_hidden_layers - (0 if config.lora.layers == "all" else config.lora.layers)
    # Frozen matrices pass a gradient on and have none of their own.
    backward = decoder_flops(text, differentiated)
    asked, drawn = 1.5 * sizes.tokens, config.train.epochs * sizes.tokens  # tokens in the two stages
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
    return extracting, training, answering


def memory_bytes(
    config: ConfigDict, model_config, frozen: list, adapter: list, sizes: Sizes, mesh: Mesh
) -> dict:
    """Bytes on one device, by purpose, without those of `answers_in_flight`. `frozen`, `adapter`: (dotted
    path, shape-dtype) of each parameter."""
    text, item = model_config.text, jnp.dtype(config.model.dtype).itemsize

    def shard_bytes(path: str, leaf) -> int:
        sharding = parameter_sharding(mesh, path, leaf.shape)
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    weights = sum(shard_bytes(*leaf) for leaf in frozen)
    adapters = 4 * sum(shard_bytes(*leaf) for leaf in adapter)
    embeddings = (
        (sizes.train + sizes.evaluated) * AUDIO_TOKENS_A_SECOND * sizes.seconds * text.hidden_size * item
    )
    remat = config.train.remat
    if remat == "auto":
        remat = fitting_remat(
            config, text, sizes.tokens, parts, device_memory() - weights - adapters - embeddings
        )
    return {
        "weights": weights,
        "adapter, gradient, moments": adapters,
        "audio embeddings": embeddings,
        "activations of a training step": (
            activation_bytes(config, text, sizes.tokens, parts, remat) if adapter else 0
        ),
    }


def answers_in_flight(
    config: ConfigDict, text, sizes: Sizes, queries: int, mesh: Mesh, free: float
) -> tuple[int, float]:
    """How many answers are in flight when one model is asked `queries` questions, and the bytes that they
    need on one device, of which `free` are left for them."""
    generate, samples = config.generate, config.evaluate.samples
    plan = FlightPlan(text, config.model.dtype, generate.cache_dtype, generate.max_new_tokens, mesh)
    most = generate.batch_size
    if most == "auto":
        most = plan.fitting(queries, samples, sizes.tokens, free)
    flight = plan.flight(queries, samples, sizes.tokens, most)
    return flight.queries * samples, plan.bytes(flight)


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
