"""Train steps a second of one process, and of several that share one GPU, as `--sweep_jobs` has them.

    python benchmarks/processes_together.py                      # 1.5 B parameters, 1, 3 and 6 processes
    python benchmarks/processes_together.py --mps                # with NVIDIA's Multi-Process Service
    python benchmarks/processes_together.py --model=tiny --processes=1,2 --seconds=2   # any computer

A GPU gives its processes turns, so that one fills what another leaves between its kernels, and switching has
its price. All processes of a line begin to count together, when the last one has compiled its step, and count
for `--seconds`. Random weights, adapters of rank 8, 16 prompts of 144 tokens.

Predictions for one H200, 1.5 B parameters, bfloat16. The products' floor is 17 ms (12.1 TFLOP at 702
TFLOP/s). One process: 27 ms, since matrices of 1,536 columns fill the card badly and small kernels stay.
Three and six: as many steps together as one, within a tenth.

By turns no two processes' kernels are on the card at once; with the Multi-Process Service they are. A step at
1.5 billion has 2,640 kernels of 7 µs on average, which leave most of the card idle, beside 18 ms of large
products. Prediction, written before any run with it: one process as before, within 3 %; three 33 to 42 steps
a second together, six at most 5 % more than three.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from answers_in_flight import VALUES
from common import report, step_flops

from rrs_jax.distributed.machine import memory_share

RANK, BATCH, LENGTH = 8, 16, 144


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="1.5b", choices=VALUES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--processes", default="1,3,6", help="numbers, with commas between")
    parser.add_argument("--seconds", type=float, default=8, help="how long steps are counted")
    parser.add_argument("--mps", action="store_true", help="the processes' kernels run side by side")
    parser.add_argument("--out", type=Path, help="file to which each line is appended")
    parser.add_argument("--meeting", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.meeting:
        print(json.dumps(count(arguments)), flush=True)
        return
    for number in map(int, arguments.processes.split(",")):
        with multi_process_service() if arguments.mps else contextlib.nullcontext():
            line = together(number, arguments)
        report(**line)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def multi_process_service() -> Iterator[None]:
    """Runs the service's daemon, of its own folder, for the processes that are started within."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= dict.fromkeys(("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"), folder)
        try:
            subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
        except FileNotFoundError:
            raise SystemExit("--mps: there is no nvidia-cuda-mps-control; install NVIDIA's driver.") from None
        try:
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=True)
            for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
                del os.environ[name]


def together(number: int, arguments: argparse.Namespace) -> dict:
    """Runs `number` processes and returns what they did in all."""
    with tempfile.TemporaryDirectory() as meeting:
        command = [sys.executable, __file__, f"--model={arguments.model}", f"--dtype={arguments.dtype}"]
        command += [f"--seconds={arguments.seconds}", f"--meeting={meeting}", f"--processes={number}"]
        start = time.monotonic()
        children = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=os.environ | memory_share(number)
            )
            for _ in range(number)
        ]
        told = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"one of {number} processes failed, see above")
    found = [json.loads(words.splitlines()[-1]) for words in told]
    steps = sum(each["steps"] / each["seconds"] for each in found)
    return {
        "part": "processes_together",
        "model": arguments.model,
        "processes": number,
        "mps": arguments.mps,
        "steps_a_second": round(steps, 2),
        "slowest_and_fastest": sorted(round(each["steps"] / each["seconds"], 2) for each in found)[
            :: max(number - 1, 1)
        ],
        "tflop_a_second": round(steps * found[0]["flops"] / 1e12, 1),
        "compile_seconds": sorted(each["compile_seconds"] for each in found)[-1],
        "all_seconds": round(time.monotonic() - start, 1),
        "device": found[0]["device"],
    }


def count(arguments: argparse.Namespace) -> dict:
    """Compiles a step, waits until all have, and counts steps."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from train_step import AUDIO_TOKENS, random_rows

    from rrs_jax.distributed.mesh import make_mesh
    from rrs_jax.models.architectures import part
    from rrs_jax.models.lora import LoRAConfig
    from rrs_jax.models.random_init import random_model
    from rrs_jax.strategies.rrs import RRS
    from rrs_jax.train.step import OptimiserConfig, TrainStep

    values, mesh = VALUES[arguments.model], make_mesh(devices=jax.devices()[:1])
    kind = part("models", values).MODEL
    config = kind.config_class.from_hf(values)
    model = random_model(
        lambda: kind(config, dtype=jnp.dtype(arguments.dtype), lora=LoRAConfig(RANK)), mesh=mesh
    )
    text = config.text
    strategy = RRS(np.zeros((BATCH, text.hidden_size), np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(remat="dots"), mesh, 100_000)
    bank = jnp.ones((AUDIO_TOKENS, text.hidden_size), jnp.dtype(arguments.dtype))
    bank = jax.device_put(bank, step.replicated)
    rows, state, start = step.place(random_rows(strategy, BATCH, LENGTH, text.vocab_size)), step.init(), None
    start = time.monotonic()
    for _ in range(3):
        state, metrics, _ = step(state, bank, [rows])
        jax.block_until_ready(metrics.loss)
    compiled = time.monotonic() - start
    (arguments.meeting / str(os.getpid())).touch()
    while len(list(arguments.meeting.iterdir())) < int(arguments.processes):
        time.sleep(0.05)
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < arguments.seconds:
        for _ in range(5):
            state, metrics, _ = step(state, bank, [rows])
        jax.block_until_ready(metrics.loss)
        steps += 5
    return {
        "steps": steps,
        "seconds": time.monotonic() - start,
        "compile_seconds": round(compiled, 1),
        "flops": step_flops(text, BATCH * LENGTH, RANK),
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    main()
