"""Times the training step on random weights of Qwen2-Audio-7B's size (or smaller) and prints a JSON line a setting.

    python benchmarks/train_step.py --batch=16 --length=144 --remat=none,dots,full
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from rrs_jax.models.random_init import random_model
from rrs_jax.parallel import make_mesh
from rrs_jax.representations import extract_reps
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep

WARM_UP = 3
GIB = 2**30
AUDIO_TOKENS = 80  # of a row: a clip of about three seconds


def random_rows(strategy: RRS, batch: int, length: int, vocabulary: int) -> Rows:
    rng = np.random.default_rng(0)
    index = np.full((batch, length), -1, np.int32)
    index[:, 16 : 16 + AUDIO_TOKENS] = rng.integers(0, AUDIO_TOKENS, (batch, min(AUDIO_TOKENS, length - 16)))
    prompts = Batch(rng.integers(0, vocabulary, (batch, length)).astype(np.int32), np.full(batch, length, np.int32), index)
    harmful = np.arange(batch) % 2 == 0
    return Rows(prompts, strategy.examples(np.arange(batch)), harmful, np.ones(batch, np.float32))


def seconds_each(function, repeats: int) -> float:
    """`function` dispatches one piece of work and returns an array of it."""
    for _ in range(WARM_UP):
        jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(repeats):
        last = function()
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / repeats


def measure(model: nnx.Module, remat: str, arguments: argparse.Namespace) -> dict:
    mesh = make_mesh(devices=jax.devices()[:1])
    config = model.config.text
    strategy = RRS(np.zeros((arguments.batch, config.hidden_size), np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(remat=remat), mesh, arguments.steps)
    bank = jax.device_put(jnp.ones((AUDIO_TOKENS, config.hidden_size), jnp.dtype(arguments.dtype)), step.replicated)
    rows = step.place(random_rows(strategy, arguments.batch, arguments.length, config.vocab_size))
    state = step.init()
    start = time.perf_counter()
    memory = step.lower(state, bank, rows).compile().memory_analysis()
    compilation = time.perf_counter() - start

    def one_step():
        nonlocal state
        state, metrics, _ = step(state, bank, [rows])
        return metrics.loss

    seconds = seconds_each(one_step, arguments.steps)
    tokens = arguments.batch * arguments.length
    matrices = config.num_hidden_layers * sum(a * b for a, b in config.linears().values())
    return {
        "what": "step", "remat": remat, "milliseconds": round(1000 * seconds, 1),
        "samples_per_second": round(arguments.batch / seconds, 1),
        "tflop_per_second": round(4 * matrices * tokens / seconds / 1e12, 1),
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 2), "compile_seconds": round(compilation, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=144)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--first_layer", type=int, default=0, help="first layer with an adapter")
    parser.add_argument("--remat", default="none,dots,full")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()

    text = {"intermediate_size": 11008, "vocab_size": 156032, "num_hidden_layers": arguments.layers}  # as released
    config = Qwen2AudioConfig.from_hf({"text_config": text})
    lora = LoRAConfig(first_layer=arguments.first_layer)
    mesh = make_mesh(devices=jax.devices()[:1])
    model = random_model(lambda: Qwen2Audio(config, dtype=jnp.dtype(arguments.dtype), lora=lora), mesh=mesh)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "weights_gib": round(weights / GIB, 2)}))
    for remat in arguments.remat.split(","):
        print(json.dumps(measure(model, remat, arguments)), flush=True)

    batch = random_rows(RRS(np.zeros((arguments.batch, 1))), arguments.batch, arguments.length, config.text.vocab_size).batch
    bank = jnp.ones((AUDIO_TOKENS, config.text.hidden_size), jnp.dtype(arguments.dtype))
    seconds = seconds_each(lambda: extract_reps(model, batch, bank), arguments.steps)
    rate = round(arguments.batch / seconds, 1)
    print(json.dumps({"what": "extract_reps", "milliseconds": round(1000 * seconds, 1), "samples_per_second": rate}))
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        print(json.dumps({"peak_gib": round(peak / GIB, 2)}))


if __name__ == "__main__":
    main()
