"""Our side of `side_by_side.py`: every part on random weights made on the device."""

import argparse
import dataclasses
import os
from functools import partial
from pathlib import Path

import generation
import jax
import jax.numpy as jnp
import numpy as np
from common import (
    AUDIO_START,
    AUDIO_TOKENS,
    GIB,
    clip_frames,
    clip_seconds,
    encoder_flops,
    forward_flops,
    median_seconds,
    noise,
    report,
    step_flops,
    with_unroll,
)
from flax import nnx
from kernels import kernels, summary
from parts import each_part, failure_told

from rrs_jax.distributed.mesh import make_mesh, mesh_of
from rrs_jax.frozen.audio_bank import clips_at_once, make_audio_bank
from rrs_jax.frozen.audio_bank import encoder as encode_function
from rrs_jax.frozen.extraction import extract_reps
from rrs_jax.inputs.batching import batches_in_buckets, bucket_lengths
from rrs_jax.inputs.mel import CONVOLUTION_REACH, MelConfig
from rrs_jax.models.architectures import part
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.random_init import random_model
from rrs_jax.run.context import with_lora
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep


def measure(values: dict, arguments: argparse.Namespace) -> None:
    model = build(values, arguments.dtype, arguments.quantize)
    report(
        part="device",
        side="ours",
        device=jax.devices()[0].device_kind,
        version=f"jax {jax.__version__}",
        **rates(arguments),
    )
    functions = {"step": step, "extract": extract, "encoder": encoder, "generate": generate}
    each_part("ours", functions, arguments, model, values)


def build(values: dict, dtype: str, quantize: str) -> nnx.Module:
    """The model without adapters."""
    model_class = part("models", values).MODEL
    config = model_class.config_class.from_hf(values)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, quantize=quantize))
    mesh = make_mesh(devices=jax.devices()[:1])
    return random_model(lambda: model_class(config, dtype=jnp.dtype(dtype)), mesh=mesh)


def matrices_of(arguments: argparse.Namespace) -> str:
    """Suffix of a variant's name where the decoder's matrices have 8 bit; the floor stays that of 16 bit."""
    return "" if arguments.quantize == "none" else f", {arguments.quantize} matrices"


def rates(arguments: argparse.Namespace) -> dict:
    """FLOP a second of a large matrix product, and bytes read and written a second by a large copy."""
    width, elements = (8192, 2**28) if jax.default_backend() == "gpu" else (1536, 2**24)
    matrix = jax.random.normal(jax.random.key(0), (width, width), jnp.dtype(arguments.dtype))
    product = jax.jit(jnp.matmul)
    seconds = median_seconds(
        lambda: product(matrix, matrix), jax.block_until_ready, steps=arguments.rate_steps
    )
    vector = jnp.ones(elements, jnp.float32)
    copy = jax.jit(jnp.negative)
    copying = median_seconds(lambda: copy(vector), jax.block_until_ready, steps=5)
    return {"flops_a_second": 2 * width**3 / seconds, "bytes_a_second": 2 * vector.nbytes / copying}


def peak_gib(before: float | None = None) -> float | None:
    """Peak memory of this process so far; None where the device does not tell, or the work since `before` did
    not raise it, so that the peak is that of earlier work."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = round(stats["peak_bytes_in_use"] / GIB, 2) if "peak_bytes_in_use" in stats else None
    return None if peak == before else peak


def fixed_batch(batch: int, length: int, vocabulary: int) -> Batch:
    """Prompts of equal length, each with a clip in it, on the bank of one clip."""
    rng = np.random.default_rng(0)
    index = np.full((batch, length), -1, np.int32)
    index[:, AUDIO_START : AUDIO_START + AUDIO_TOKENS] = np.arange(AUDIO_TOKENS)
    ids = rng.integers(0, vocabulary, (batch, length)).astype(np.int32)
    return Batch(ids, np.full(batch, length, np.int32), index)


def clip_bank(model: nnx.Module) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (AUDIO_TOKENS, model.config.text.hidden_size), model.dtype)


def generate(model: nnx.Module, values: dict, arguments: argparse.Namespace) -> None:
    if arguments.adapters:
        lora = LoRAConfig(arguments.rank, 2.0 * arguments.rank, None)
        model = with_lora(model, lora, make_mesh(devices=jax.devices()[:1]), 0)
    generation.ours(model, values, arguments)


def step(model: nnx.Module, values: dict, arguments: argparse.Namespace) -> None:
    """All of `--remat` at the first setting, the first of them at those of `--scaling`."""
    first, *others = arguments.settings
    for remat in arguments.remat.split(","):
        one_setting(model, *first, remat, arguments)
    for setting in others:
        one_setting(model, *setting, arguments.remat.split(",")[0], arguments, curve=True)


def one_setting(
    model: nnx.Module,
    batch: int,
    length: int,
    rank: int,
    remat: str,
    arguments: argparse.Namespace,
    curve: bool = False,
) -> None:
    """Times training steps; with `curve` fewer of them and no profile."""
    line = dict(
        part="step",
        side="ours",
        variant=f"remat {remat}{matrices_of(arguments)}",
        batch=batch,
        length=length,
        rank=rank,
    )
    with failure_told(**line):  # where the memory does not do for one setting, others may fit
        before, text, mesh = peak_gib(), model.config.text, make_mesh(devices=jax.devices()[:1])
        adapted = with_lora(model, LoRAConfig(rank, 2.0 * rank, None), mesh, 0)
        strategy = RRS(np.zeros((batch, text.hidden_size), np.float32))
        kept, unroll = with_unroll(remat)
        optimiser = OptimiserConfig(remat=kept, unroll=unroll)
        train = TrainStep(adapted, strategy, optimiser, mesh, 1000)
        prompts, harmful = fixed_batch(batch, length, text.vocab_size), np.arange(batch) % 2 == 0
        rows = train.place(
            Rows(prompts, strategy.examples(np.arange(batch)), harmful, np.ones(batch, np.float32))
        )
        bank = jax.device_put(clip_bank(model), train.replicated)
        state = train.init()

        def one_step():
            nonlocal state
            state, metrics, _ = train(state, bank, [rows])
            return metrics

        seconds = median_seconds(
            one_step, jax.block_until_ready, max(1, arguments.steps // 3) if curve else arguments.steps
        )
        line |= dict(
            seconds=seconds, units=batch, unit="samples", floor_flops=step_flops(text, batch * length, rank)
        )
        report(**line, peak_gib=peak_gib(before), finite=bool(one_step().finite))
        if arguments.profile and not curve:
            report(part="step", detail="kernels of a step", **profile_line(line, kernels(one_step)))


def profile_line(line: dict, found: dict) -> dict:
    """Name that tells a profile apart from others, the work and the time that it belongs to, and its longest
    kernels."""
    names = ("variant", "batch", "length", "rank", "floor_flops")
    told = {name: line[name] for name in names if name in line}
    return (
        told
        | {"milliseconds": 1000 * line["seconds"], "device": jax.devices()[0].device_kind}
        | summary(found, 10)
    )


def extract(model: nnx.Module, values: dict, arguments: argparse.Namespace) -> None:
    text, bank = model.config.text, clip_bank(model)
    for batch, length, rank in arguments.settings:
        if rank != arguments.rank:
            continue
        variant = "encoder outputs kept" + matrices_of(arguments)
        line = dict(part="extract", side="ours", variant=variant, batch=batch, length=length)
        with failure_told(**line):
            before, prompts = peak_gib(), fixed_batch(batch, length, text.vocab_size)
            seconds = median_seconds(
                partial(extract_reps, model, prompts, bank), jax.block_until_ready, arguments.steps
            )
            work = dict(units=batch, unit="samples", floor_flops=forward_flops(text, batch * length))
            report(**line, **work, seconds=seconds, peak_gib=peak_gib(before))


def _features(bins: int, frames: list[int], selection) -> tuple[jax.Array, jax.Array]:
    """A batch of features on the device, and the frames that count."""
    shape = (len(selection.indices), bins, selection.length)
    counting = np.asarray([frames[i] for i in selection.indices], np.int32)
    return jax.device_put((jnp.ones(shape, jnp.float32), counting))


def encoder(model: nnx.Module, values: dict, arguments: argparse.Namespace) -> None:
    """On the device alone, in the batches that `make_audio_bank` makes of clips of real length; then with the
    waveforms' features and the way back to the host."""
    config, batch = model.config, arguments.batch
    seconds = clip_seconds(arguments.clips)
    frames = clip_frames(seconds)
    lengths = [m + CONVOLUTION_REACH for m in frames]
    buckets = bucket_lengths(lengths, 5, model.frame_multiple)
    graphdef, state = nnx.split(model)
    encode = encode_function(graphdef, mesh_of(model))
    floor = encoder_flops(config.audio, config.text.hidden_size, frames)
    common = dict(
        part="encoder", side="ours", units=len(frames), unit="clips", floor_flops=floor, batch=batch
    )
    for size in dict.fromkeys((batch, clips_at_once(len(frames), buckets[-1], batch, 1))):
        variant = f"real lengths, {size} clips at once"
        with failure_told(part="encoder", side="ours", batch=batch, variant=variant):
            selections = batches_in_buckets(lengths, size, buckets)
            inputs = [_features(config.audio.num_mel_bins, frames, selection) for selection in selections]

            def every_batch(inputs=inputs):
                for features, counting in inputs:
                    encoded = encode(state, features, counting)
                return encoded

            device_seconds = median_seconds(every_batch, jax.block_until_ready, 1)
            line = common | dict(variant=variant, seconds=device_seconds)
            report(**line)
            if arguments.profile:
                report(part="encoder", detail="kernels of a pass", **profile_line(line, kernels(every_batch)))

    mel = mel_config(values, config.audio.num_mel_bins)
    sounds = [noise(s, i) for i, s in enumerate(seconds)]
    bank = median_seconds(
        lambda: make_audio_bank(model, mel, sounds, batch_size=batch), lambda bank: bank.array, 1
    )
    report(
        **common, variant="make_audio_bank: with features from waveforms", seconds=bank, cores=os.cpu_count()
    )


def mel_config(values: dict, bins: int) -> MelConfig:
    prompt_format = part("inputs", values).FORMAT
    if prompt_format.mel_config:
        return prompt_format.mel_config(Path("."), prompt_format.model_values(values))
    return MelConfig(num_mel_bins=bins)
