"""The whole run of configs/qwen2_rrs.py:as_written through `rrs_jax.run.pipeline`, from weights on the device
to a saved adapter.

700 harmful questions under two prompts, 700 benign ones under one, 10 epochs over all of them: 2,100
extractions and 14,000 sample passes, with clips as long as the starter set's. Weights and sound are random,
so the numbers mean nothing, while the work is that of a run. Reading and checking the clips is the stage
`data`, which is not counted.

Compiled programs are kept in $RRS_JAX_CACHE, or $TMPDIR/rrs_jax_cache: a second run finds a warm cache.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from common import GIB, clip_frames, clip_seconds, encoder_flops, forward_flops, noise, report, step_flops
from folders import working_folder, write_small_files, write_sparse_weights
from ours import build, matrices_of, rates
from parts import each_part, interruptible

from configs.qwen2_rrs import get_config
from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T
from rrs_jax.files import read_json, read_jsonl, write_jsonl
from rrs_jax.frozen.audio_bank import AudioBank
from rrs_jax.run import pipeline
from rrs_jax.run.sweep_cache import SweepCache

STAGES = ("data", "extract", "train", "export")


class OnDevice(SweepCache):
    """A model that is on the device already, and clocks."""

    def __init__(self, model):
        super().__init__()
        self.model, self.encoding = model, 0.0

    def vanilla(self, *_: object):
        return self.model

    def audio_bank(self, *inputs, **settings) -> AudioBank:
        start = time.perf_counter()
        bank = super().audio_bank(*inputs, **settings)
        jax.block_until_ready(bank.array)
        self.encoding += time.perf_counter() - start
        return bank


def measure(values: dict, arguments: argparse.Namespace) -> None:
    if values["model_type"] == "qwen":
        report(
            part="whole",
            side="ours",
            failed="no tokenizer of 150,000 ranks is made up for the first Qwen-Audio",
        )
        return
    os.environ.setdefault("RRS_JAX_CACHE", os.path.join(tempfile.gettempdir(), "rrs_jax_cache"))
    device = jax.devices()[0].device_kind
    report(part="device", side="ours", device=device, version=f"jax {jax.__version__}", **rates(arguments))
    each_part("ours", {"whole": whole}, arguments, values)


def whole(values: dict, arguments: argparse.Namespace) -> None:
    with working_folder("whole") as place:
        cache = "warm" if any((Path(os.environ["RRS_JAX_CACHE"]) / "compiled").glob("*")) else "empty"
        seconds = clip_seconds(2 * arguments.questions)
        manifests = write_questions(place / "questions", seconds)
        base = place / "base"
        base.mkdir()
        write_small_files(base, values)
        write_sparse_weights(base / "model.safetensors", values, arguments.dtype)
        model = jax.block_until_ready(build(values, arguments.dtype, arguments.quantize))

        config = get_config("as_written")  # by which all figures in docs/performance.md were measured
        config.model.path, config.model.dtype = str(base), arguments.dtype
        config.model.quantize = arguments.quantize
        config.run_dir = str(place / "run")
        config.data.manifest, config.data.eval_manifest = map(str, manifests)
        config.train.epochs, config.train.unroll = arguments.epochs, arguments.unroll
        shared = OnDevice(model)
        interruptible()
        try:
            pipeline.run(config, STAGES, shared)
        except KeyboardInterrupt:
            tell_part(Path(config.run_dir), shared)
            sys.exit(1)
        tell(Path(config.run_dir), model, seconds, shared, config, arguments, cache)


def tell_part(run: Path, shared: OnDevice) -> None:
    done = {name: read_json(file) for name in STAGES if (file := run / ".done" / f"{name}.json").is_file()}
    metrics = run / "metrics.jsonl"
    rows = read_jsonl(metrics) if metrics.is_file() else []
    report(
        part="whole",
        detail="unfinished",
        encoding_seconds=shared.encoding,
        steps=len(rows),
        stage_seconds={name: mark["seconds"] for name, mark in done.items()},
        compile_seconds={name: mark["compiling_seconds"] for name, mark in done.items()},
        samples_a_second=statistics.median(line["samples_per_second"] for line in rows) if rows else None,
    )


def prompt_tokens(processor, frames: list[int], text: str) -> np.ndarray:
    """Tokens of a prompt with each of the clips."""
    counts = [processor.mel.token_count(m) for m in frames]
    return np.asarray(counts) + len(processor.encode(text, [2])) - 2


def needed_flops(model, config, frames: list[int], tokens: Callable[[str], np.ndarray]) -> float:
    """Operations of a run's clips, representations and steps."""
    extracted = tokens(PROMPT_T).sum() + tokens(PROMPT_REFUSAL)[: len(frames) // 2].sum()
    trained = config.train.epochs * np.mean([tokens(text).sum() for text in PROMPT_POOL])
    text = model.config.text
    once = encoder_flops(model.config.audio, text.hidden_size, frames) + forward_flops(text, extracted)
    return once + step_flops(text, trained, config.lora.rank)


def tell(
    run: Path, model, seconds, shared: OnDevice, config, arguments: argparse.Namespace, cache: str
) -> None:
    from rrs_jax.inputs.processor import Processor

    marks = {name: read_json(run / ".done" / f"{name}.json") for name in STAGES}
    stages, compiling = (
        {name: mark[field] for name, mark in marks.items()} for field in ("seconds", "compiling_seconds")
    )
    metrics = read_jsonl(run / "metrics.jsonl")
    processor, frames = Processor.from_folder(Path(config.model.path)), clip_frames(seconds)
    tokens = partial(prompt_tokens, processor, frames)
    half = len(frames) // 2
    work = {name: stages[name] for name in ("extract", "train", "export")}
    stats = jax.local_devices()[0].memory_stats() or {}
    variant = f"{cache} compilation cache{matrices_of(arguments)}" + (", unroll" if arguments.unroll else "")
    report(
        part="whole",
        side="ours",
        variant=variant,
        seconds=sum(work.values()),
        units=1,
        unit="runs",
        floor_flops=needed_flops(model, config, frames, tokens),
        stage_seconds=work | {"data (not counted)": stages["data"]},
        encoding_seconds=shared.encoding,
        compile_seconds=compiling,
        seconds_without_compilation=sum(work.values()) - sum(compiling[name] for name in work),
        extractions=3 * half,
        sample_passes=2 * half * config.train.epochs,
        mean_tokens=float(tokens(PROMPT_T).mean()),
        samples_a_second=statistics.median(line["samples_per_second"] for line in metrics),
        steps=len(metrics),
        adapter=(run / "export" / "adapter" / "adapter_model.safetensors").stat().st_size,
        peak_gib=round(stats.get("peak_bytes_in_use", 0) / GIB, 2),
    )


def write_questions(folder: Path, seconds: np.ndarray) -> tuple[Path, Path]:
    """Manifests of training and of evaluation, which is not run but belongs to the data stage; clips are
    noise."""
    folder.mkdir()
    rows = []
    for place, length in enumerate(seconds):
        label = "harmful" if place < len(seconds) // 2 else "benign"
        clip = folder / f"{place}.wav"
        write_clip(clip, noise(length, place))
        rows.append(
            {
                "id": f"q{place}",
                "label": label,
                "question": f"question {place}",
                "audio": clip.name,
                "seconds": float(length),
                "voice": "noise",
            }
        )
    evaluation = [
        row | {"id": f"e{row['id']}", "question": f"e {row['question']}"} for row in (rows[0], rows[-1])
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "eval.jsonl", evaluation)
    return folder / "train.jsonl", folder / "eval.jsonl"


def write_clip(file: Path, sound: np.ndarray) -> None:
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16_000)
        stream.writeframes((np.clip(sound, -1, 1) * 32_767).astype("<i2").tobytes())
