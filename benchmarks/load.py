"""The part `load`: from weights on a local disk to the first training step done, in a new process.

A folder of random weights is written once, and the operating system is asked to forget it before each reader.
Ours runs twice, since the first fills the compilation cache and the second finds it warm. The floor is the
folder's bytes at the rate at which this disk is read, measured on the same file.
"""

import argparse
import os
import time
from pathlib import Path

from common import report

SIDES = {"ours": ("ours-load", "ours-load"), "peer": ("peer-load",)}  # turns, in this order
READ_BYTES = 2**31  # of the file, for the disk's rate
FILE = "model.safetensors"


def write_folder(values: dict, arguments: argparse.Namespace) -> None:
    """Weights and small files into `arguments.folder`; tells its size and how fast the disk gives it back."""
    from folders import forget, write_random_weights, write_small_files

    folder = Path(arguments.folder)
    write_small_files(folder, values)
    start = time.perf_counter()
    size = write_random_weights(folder / FILE, values, arguments.dtype)
    written = time.perf_counter() - start
    start, count = time.perf_counter(), 0
    with (folder / FILE).open("rb", buffering=0) as stream:
        while count < READ_BYTES and (data := stream.read(2**24)):
            count += len(data)
    seconds = time.perf_counter() - start
    forget(folder / FILE)
    report(
        part="load", detail="folder", bytes=size, write_seconds=written, read_bytes_a_second=count / seconds
    )


def started() -> float:
    """When the process that runs the sides began this one, in seconds of the clock."""
    return float(os.environ["BENCHMARK_STARTED"])


def told(side: str, variant: str, loading: float, loaded: float, done: float, folder: Path, **more) -> None:
    """The line of one process, and the disk forgets the weights."""
    from folders import forget

    forget(folder / FILE)
    report(
        part="load",
        side=side,
        variant=variant,
        seconds=done - started(),
        units=1,
        unit="runs",
        floor_flops=0.0,
        disk_bytes=(folder / FILE).stat().st_size,
        start_seconds=loading - started(),
        load_seconds=loaded - loading,
        first_step_seconds=done - loaded,
        **more,
    )


def ours_load(values: dict, arguments: argparse.Namespace) -> None:
    cache = Path(arguments.folder) / "cache"  # so that the first process finds it empty
    warm = cache.is_dir()
    os.environ["RRS_JAX_CACHE"] = str(cache)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ours import clip_bank, fixed_batch

    from rrs_jax.distributed.mesh import make_mesh
    from rrs_jax.models.lora import LoRAConfig
    from rrs_jax.run.context import enable_compilation_cache
    from rrs_jax.strategies.rrs import RRS
    from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep
    from rrs_jax.weights.load import load_weights

    enable_compilation_cache()
    mesh, folder, batch = make_mesh(devices=jax.devices()[:1]), Path(arguments.folder), arguments.batch
    loading = time.time()
    lora = LoRAConfig(arguments.rank, 2.0 * arguments.rank, None)
    model = load_weights(folder, dtype=jnp.dtype(arguments.dtype), lora=lora, mesh=mesh)
    jax.block_until_ready(model)
    loaded = time.time()
    text = model.config.text
    strategy = RRS(np.zeros((batch, text.hidden_size), np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(), mesh, 1000)
    prompts = fixed_batch(batch, arguments.length, text.vocab_size)
    rows = step.place(
        Rows(
            prompts,
            strategy.examples(np.arange(batch)),
            np.arange(batch) % 2 == 0,
            np.ones(batch, np.float32),
        )
    )
    state, metrics, _ = step(step.init(), clip_bank(model), [rows])
    finite = bool(metrics.finite)
    variant = "warm compilation cache" if warm else "empty compilation cache"
    told("ours", variant, loading, loaded, time.time(), folder, finite=finite)


def peer_load(values: dict, arguments: argparse.Namespace) -> None:
    import torch
    from peer import DEVICE, Peer, peer_class, wait

    from rrs_jax.models.architectures import part

    if values["model_type"] == "qwen":
        report(part="load", side="peer", failed="the first Qwen-Audio is no class of transformers")
        return
    folder = Path(arguments.folder)
    loading = time.time()
    config = part("models", values).MODEL.config_class.from_hf(values)
    model_class, settings = peer_class(values, config)
    model = model_class.from_pretrained(
        folder, config=settings, dtype=getattr(torch, arguments.dtype), device_map=str(DEVICE)
    )
    wait(None)
    loaded = time.time()
    peer = Peer(values, config, arguments, model)
    peer.first_step()
    wait(None)
    told("peer", "from_pretrained, encoder outputs kept", loading, loaded, time.time(), folder)
