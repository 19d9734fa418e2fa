"""Times the training step on random weights of a model's size, Qwen2-Audio-7B's if none is named, and prints
a JSON line a setting.

python benchmarks/train_step.py --batch=16 --length=144 --variants=dots,dots+unroll,extract --profile
python benchmarks/train_step.py --rank=16 --variants=dots,dots+dropout,dots,dots+dropout   # dropout's cost
python benchmarks/train_step.py --model=1.5b --variants=dots,dots+unroll,none,products --profile
python benchmarks/train_step.py --variants=lean --out=docs/performance/h100.jsonl   # alone, for the memory
that it takes
"""

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from answers_in_flight import VALUES
from common import step_flops, with_unroll
from flax import nnx
from kernels import kernels, summary
from ours import peak_gib, profile_line
from parts import failure_told

from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.frozen import extraction as representations
from rrs_jax.frozen.extraction import extract_reps
from rrs_jax.models.architectures import part
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.quantised import QUANTISATIONS, Float8, Int8, product, product_back, rounded_rows
from rrs_jax.models.random_init import random_model
from rrs_jax.models.stack import compiler_options
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train import step as step_module
from rrs_jax.train.step import OptimiserConfig, Rows, TrainStep

WARM_UP = 3
DROPOUT = 0.1  # of the variants with +dropout, the authors' rate
GIB = 2**30
AUDIO_TOKENS = 80  # of a row: a clip of about three seconds


def random_rows(strategy: RRS, batch: int, length: int, vocabulary: int) -> Rows:
    rng = np.random.default_rng(0)
    index = np.full((batch, length), -1, np.int32)
    index[:, 16 : 16 + AUDIO_TOKENS] = rng.integers(0, AUDIO_TOKENS, (batch, min(AUDIO_TOKENS, length - 16)))
    prompts = Batch(
        rng.integers(0, vocabulary, (batch, length)).astype(np.int32), np.full(batch, length, np.int32), index
    )
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


def setting_of(variant: str, arguments: argparse.Namespace) -> dict:
    """Names a step, as its line does before the figures."""
    first, quantize = arguments.first_layer, arguments.quantize
    variant = f"remat {variant}" + (f", adapters from layer {first}" if first else "")
    return dict(
        model=arguments.model + (f" of {arguments.layers} layers" if arguments.layers else ""),
        part="step",
        side="ours",
        variant=variant + ("" if quantize == "none" else f", {quantize} matrices"),
        batch=arguments.batch,
        length=arguments.length,
        rank=arguments.rank,
    )


def measure(model: nnx.Module, variant: str, remat: str, unroll: bool, arguments: argparse.Namespace) -> dict:
    before, mesh = peak_gib(), make_mesh(devices=jax.devices()[:1])
    config = model.config.text
    dropout = DROPOUT if variant.endswith("+dropout") else 0.0
    model.lora.config = dataclasses.replace(model.lora.config, dropout=dropout)
    strategy = RRS(np.zeros((arguments.batch, config.hidden_size), np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(remat=remat, unroll=unroll), mesh, arguments.steps)
    bank = jax.device_put(
        jnp.ones((AUDIO_TOKENS, config.hidden_size), jnp.dtype(arguments.dtype)), step.replicated
    )
    rows = step.place(random_rows(strategy, arguments.batch, arguments.length, config.vocab_size))
    state = step.init()
    start = time.perf_counter()
    memory = step.lower(state, bank, rows).compile().memory_analysis()
    compilation = time.perf_counter() - start

    def one_step():
        nonlocal state
        state, metrics, _ = step(state, bank, [rows])
        return metrics.loss

    first = float(one_step())
    seconds = seconds_each(one_step, arguments.steps)
    tokens = arguments.batch * arguments.length
    matrices = config.num_hidden_layers * sum(a * b for a, b in config.linears().values())
    found = {
        "what": "step",
        "remat": remat,
        "milliseconds": round(1000 * seconds, 1),
        "samples_per_second": round(arguments.batch / seconds, 1),
        "tflop_per_second": round(4 * matrices * tokens / seconds / 1e12, 1),
        "first_loss": first,
        "later_loss": float(one_step()),
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 2),
        "compile_seconds": round(compilation, 1),
    }
    line = setting_of(variant, arguments) | dict(
        seconds=seconds,
        units=arguments.batch,
        unit="samples",
        floor_flops=step_flops(config, tokens, arguments.rank),
        peak_gib=peak_gib(before),
    )
    keep(line, arguments.out)
    if arguments.profile:
        profiled = profile_line(line, kernels(one_step))
        keep(
            {"model": line["model"], "part": "step", "detail": "kernels of a step", **profiled}, arguments.out
        )
        found |= profiled
    return found


def keep(line: dict, out: str | None) -> None:
    """Writes lines for benchmarks/performance_page.py."""
    if out:
        with open(out, "a") as file:
            file.write(json.dumps(line) + "\n")


def measure_extraction(model: nnx.Module, unroll: bool, arguments: argparse.Namespace) -> dict:
    """Representations of the vanilla model, as a run's extraction."""
    model = nnx.merge(*nnx.split(model))
    model.lora, config = None, model.config.text
    model.language_model.unroll = unroll
    batch = random_rows(
        RRS(np.zeros((arguments.batch, 1))), arguments.batch, arguments.length, config.vocab_size
    ).batch
    bank = jnp.ones((AUDIO_TOKENS, config.hidden_size), jnp.dtype(arguments.dtype))

    def extract():
        return extract_reps(model, batch, bank)

    seconds = seconds_each(extract, arguments.steps)
    found = {
        "what": "extract_reps",
        "milliseconds": round(1000 * seconds, 1),
        "samples_per_second": round(arguments.batch / seconds, 1),
    }
    return found | (summary(kernels(extract), 10) if arguments.profile else {})


def measure_products(model: nnx.Module, arguments: argparse.Namespace) -> None:
    """The rate that cuBLAS reaches for the step's own matrix products, each over many matrices: the floor of
    this shape. With float8 also without the rounding of x, the scales and, backward, the transposition
    (`bare`)."""
    tokens, layers = arguments.batch * arguments.length, 8
    sizes = sorted(set(model.config.text.linears().values()))
    d, f = model.config.text.hidden_size, model.config.text.intermediate_size
    for rows, columns in [*sizes, (d, 3 * d), (d, 2 * f)]:
        keys = jax.random.split(jax.random.key(0), layers)
        weights = [
            quantised(jax.random.normal(key, (rows, columns), jnp.dtype(arguments.dtype)), arguments)
            for key in keys
        ]
        for name, multiply in {"forward": product, "backward": product_back, "bare": bare_product}.items():
            if name == "bare" and arguments.quantize != "float8":
                continue
            x = jnp.ones((tokens, columns if name == "backward" else rows), jnp.dtype(arguments.dtype))
            x = rounded_rows(x)[0] if name == "bare" else x

            def products(x, weights, multiply=multiply):
                return [multiply(x, matrix) for matrix in weights]

            run = jax.jit(products, compiler_options=compiler_options())
            seconds = (
                seconds_each(lambda run=run, x=x, weights=weights: run(x, weights), arguments.steps) / layers
            )
            rate = round(2 * tokens * rows * columns / seconds / 1e12)
            report(
                {"what": "product", "size": [tokens, rows, columns], "pass": name, "tflop_per_second": rate}
            )


def quantised(matrix: jax.Array, arguments: argparse.Namespace) -> jax.Array | Int8 | Float8:
    kinds = {"none": jnp.asarray, "int8": Int8.of, "float8": lambda matrix: Float8.of(matrix.T)}
    return kinds[arguments.quantize](matrix)


def bare_product(x: jax.Array, matrix: Float8) -> jax.Array:
    contracted = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, matrix.rows, contracted, preferred_element_type=jnp.bfloat16)


def report(found: dict) -> None:
    print(json.dumps(found), flush=True)


def measure_variant(model: nnx.Module, variant: str, arguments: argparse.Namespace) -> None:
    """Measures one of --variants, with XLA's flags that it names."""
    name, *flags = variant.split("@")
    name, unroll = with_unroll(name.removesuffix("+dropout"))
    added = {
        name: {"true": True, "false": False}.get(value, value)
        for name, value in (flag.split("=") for flag in flags)
    }
    for module in (step_module, representations):
        module.compiler_options = lambda: compiler_options() and compiler_options() | added
    representations._representations.cache_clear()
    if name == "products":
        measure_products(model, arguments)
    elif name == "extract":
        report({"variant": variant} | measure_extraction(model, unroll, arguments))
    else:
        report({"variant": variant} | measure(model, variant, name, unroll, arguments))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=144)
    parser.add_argument("--model", default="qwen2-audio", choices=VALUES)
    parser.add_argument("--layers", type=int, help="decoder layers, where not all of the model's")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--first_layer", type=int, default=0, help="first layer with an adapter")
    parser.add_argument(
        "--variants",
        default="dots,none,full,extract",
        help=(
            "train steps by their train.remat, extract, products; each with +unroll, +dropout behind it, and"
            " with @FLAG=VALUE for XLA"
        ),
    )
    parser.add_argument("--profile", action="store_true", help="name the kernels in which the time goes")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--quantize", default="none", choices=QUANTISATIONS, help="the decoder's frozen matrices"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", help="file to which lines for benchmarks/performance_page.py are appended")
    return parser.parse_args()


def model_of_size(arguments: argparse.Namespace) -> nnx.Module:
    """A random model of the sizes that were asked for, but for the number of layers."""
    values = VALUES[arguments.model]
    kind = part("models", values).MODEL
    config = kind.config_class.from_hf(values)
    layers = arguments.layers or config.text.num_hidden_layers
    text = dataclasses.replace(config.text, quantize=arguments.quantize, num_hidden_layers=layers)
    config = dataclasses.replace(config, text=text)
    lora = LoRAConfig(arguments.rank, first_layer=arguments.first_layer)
    mesh = make_mesh(devices=jax.devices()[:1])
    return random_model(lambda: kind(config, dtype=jnp.dtype(arguments.dtype), lora=lora), mesh=mesh)


def main() -> None:
    arguments = parse()
    model = model_of_size(arguments)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    report(
        {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "weights_gib": round(weights / GIB, 2),
        }
    )
    for variant in arguments.variants.split(","):
        with failure_told(variant=variant):
            measure_variant(model, variant, arguments)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        report({"peak_gib": round(peak / GIB, 2)})


if __name__ == "__main__":
    main()
