"""Measurements in processes of their own: one with little memory, and whole runs on some of the devices."""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CARD_BYTES = 24e9  # of a card of 24 GB, of which the program takes `machine.MEMORY_SHARE`
ANSWERS = 64  # in flight on each device, in place of 16 in all, which one device answers as fast as several
NEW_TOKENS = 64  # of an answer, in place of 256


def measure(name: str, options: argparse.Namespace) -> None:
    """Runs `omni` once and `default` on one device and on all, each in a process that this one waits for."""
    if options.inner:
        (omni if name == "omni" else default)(options)
        return
    inner = [argument for argument in sys.argv[1:] if argument != options.parts]
    command = [sys.executable, str(Path(__file__).parent), name, "--inner", *inner]
    for environment in [card_memory()] if name == "omni" else [one_device(), {}]:
        done = subprocess.run(command, env=os.environ | environment, check=False)
        if done.returncode:
            print(f'{{"part": "{name}", "failed": "ended with status {done.returncode}"}}', flush=True)


def card_memory() -> dict[str, str]:
    """Returns the variable that leaves a process the memory of a smaller card on each device."""
    from rrs_jax.distributed.machine import MEMORY_SHARE, MEMORY_VARIABLE

    if shutil.which("nvidia-smi") is None:
        return {}
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    mebibytes = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    return {MEMORY_VARIABLE: f"{MEMORY_SHARE * CARD_BYTES / (int(mebibytes) * 2**20):.4f}"}


def one_device() -> dict[str, str]:
    """Returns the variables that leave a process one device."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {"CUDA_VISIBLE_DEVICES": first, "XLA_FLAGS": flags}


def omni(options: argparse.Namespace) -> None:
    """A step of Omni-7B with fsdp over all devices: as `:card24` makes it, four rows at a time and nothing
    kept but the layers' inputs; then all rows at once and `dots`."""
    import jax
    from parts import failure_told

    from rrs_jax.config.training import OptimiserConfig
    from several_gpus.measure import seconds_of
    from several_gpus.workload import Lines, Training, Work, build, is_small, mesh_over, peaks_gib

    work = Work.of(options)
    work = dataclasses.replace(work, model="omni-tiny" if is_small(options.model) else "omni-7b")
    lines, n = Lines(work, options.out), len(jax.devices())
    mesh = mesh_over((1, n, 1))
    model = build(work, mesh)
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    for remat, parts in (("full", 4), ("dots", 1)):
        facts = {"mesh": f"fsdp {n}", "devices": n, "batch": work.batch, "remat": remat, "parts": parts}
        with failure_told(part="omni", **facts):
            training = Training(model, work, mesh, work.batch, OptimiserConfig(remat=remat))
            state, metrics, _ = training.step(
                training.step.init(), training.bank, training.batch(0, parts=parts)
            )
            facts |= {"loss": float(metrics.loss), "finite": bool(metrics.finite)}
            if parts == 1:
                facts["seconds"] = seconds_of(training, work, state)
            lines.write("omni", **facts, limit_bytes=limit, peak_gib=peaks_gib())


def default(options: argparse.Namespace) -> None:
    """Every stage of configs/qwen2_rrs.py on the devices at hand, from weights on them to the report."""
    import jax
    import numpy as np
    from common import SIZES, clip_seconds
    from folders import write_small_files, write_sparse_weights
    from whole_run import OnDevice, write_questions

    from configs.qwen2_rrs import get_config
    from rrs_jax.files import read_json, read_jsonl, write_jsonl
    from rrs_jax.run import pipeline
    from several_gpus.workload import Lines, Work, build, is_small, mesh_over, name_of, peaks_gib

    work, n = Work.of(options), len(jax.devices())
    lines, small = Lines(work, options.out), is_small(options.model)
    questions = options.questions or (8 if small else 140)
    stages = ("data", "extract", "train", "evaluate", "export", "report")
    with tempfile.TemporaryDirectory(prefix="several_gpus_default_") as place:
        place = Path(place)
        manifest, evaluation = write_questions(place / "questions", clip_seconds(2 * questions))
        asked = read_jsonl(manifest)[:: max(1, questions // 16)]
        write_jsonl(
            evaluation, [row | {"id": f"e{row['id']}", "question": f"e {row['question']}"} for row in asked]
        )
        base = place / "base"
        base.mkdir()
        write_small_files(base, SIZES[work.model])
        write_sparse_weights(base / "model.safetensors", SIZES[work.model], work.dtype)
        model = jax.block_until_ready(build(work, mesh_over((n, 1, 1))))
        config = get_config()
        config.model.path, config.model.dtype, config.run_dir = str(base), work.dtype, str(place / "run")
        config.data.manifest, config.data.eval_manifest = str(manifest), str(evaluation)
        config.train.epochs = options.epochs
        config.generate.batch_size = ANSWERS * n
        config.generate.max_new_tokens = options.new_tokens or (8 if small else NEW_TOKENS)
        start = time.perf_counter()
        pipeline.run(config, stages, OnDevice(model))
        run = place / "run"
        marks = {name: read_json(run / ".done" / f"{name}.json") for name in stages}
        metrics = read_jsonl(run / "metrics.jsonl")
        lines.write(
            "default",
            mesh=name_of((n, 1, 1)),
            devices=n,
            questions=2 * questions,
            evaluated=len(asked),
            epochs=options.epochs,
            new_tokens=config.generate.max_new_tokens,
            seconds=round(time.perf_counter() - start, 1),
            stage_seconds={name: mark["seconds"] for name, mark in marks.items()},
            compile_seconds={name: mark["compiling_seconds"] for name, mark in marks.items()},
            steps=len(metrics),
            samples_a_second=float(np.median([line["samples_per_second"] for line in metrics])),
            losses=[metrics[0]["loss"], metrics[-1]["loss"]],
            peak_gib=peaks_gib(),
        )
