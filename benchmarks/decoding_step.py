"""A decoding step under several settings of the compiler and of the attention kernel.

    python benchmarks/decoding_step.py                                       # one GPU, Qwen2-Audio's size
    python benchmarks/decoding_step.py --model=mini,1.5b --queries=32
    python benchmarks/decoding_step.py --variants="WARPS=8,STAGES=4+BLOCK=32"
    python benchmarks/decoding_step.py --model=tiny --queries=2 --variants=   # any computer

A variant is settings with + between: XLA's options by name, `one_graph=true` for those that make a step one
CUDA graph, and in capitals the constants of `rrs_jax.models.fused_attention`. The first one is always the
package as it is. Random weights, prompts of 136 tokens with five answers each, half of 64 slots in use. All
variants are compiled first, side by side; then each runs the same chunk of steps, of which the fastest of
three counts. `tokens` is the share of tokens that are those of the first variant.
"""

import argparse
import gc
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from answers_in_flight import SAMPLES, SAMPLING, VALUES, WIDTH, random_model
from common import Clock, report
from parts import failure_told

from rrs_jax.generate import Generator, SamplingConfig, engine
from rrs_jax.generate.state import DecodingState
from rrs_jax.generate.steps import CHUNK_STEPS
from rrs_jax.models import fused_attention
from rrs_jax.models.cache import Cache, KeysValues
from rrs_jax.models.stack import compiler_options

SLOTS = 64
GRAPH = "CONDITIONAL,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,FUSION,WHILE"
# A trace of each layer's products kept; a step as one CUDA graph, with and without these traces; no graph.
VARIANTS = ",".join(
    [
        "xla_cmd_buffer_trace_cache_size=64",
        "one_graph=true",
        "one_graph=true+xla_cmd_buffer_trace_cache_size=64",
        "xla_gpu_graph_min_graph_size=1000000",
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen2-audio", help=f"of {', '.join(VALUES)}, with commas between")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--queries", type=int, default=128, help="prompts in flight, with five answers each")
    parser.add_argument("--variants", default=VARIANTS)
    parser.add_argument("--seconds", type=float, default=60, help="no variant is begun after them")
    arguments = parser.parse_args()
    for name in arguments.model.split(","):
        measure(argparse.Namespace(**vars(arguments) | {"model": name}))
        gc.collect()


def measure(arguments: argparse.Namespace) -> None:
    start = Clock.now()
    model = random_model(arguments)
    state = half_way(model, arguments.queries)
    variants = ["", *filter(None, arguments.variants.split(","))]
    lowered = {variant: lower(model, state, variant) for variant in variants}
    with ThreadPoolExecutor(8) as pool:
        waiting = {variant: pool.submit(one.compile) for variant, (one, _) in lowered.items()}
    report(part="start", model=arguments.model, seconds=round(Clock.now() - start, 1))
    begun, first = Clock.now(), None
    for variant, compiled in waiting.items():
        if Clock.now() - begun > arguments.seconds:
            break
        line = dict(part="decoding step", model=arguments.model, variant=variant or "as it is")
        with failure_told(**line):
            program, parameters, seconds = compiled.result(), lowered[variant][1], []
            for _ in range(3):
                state = at_start(state)
                jax.block_until_ready(state)
                before = Clock.now()
                state, tokens = jax.block_until_ready(program(parameters, state))
                seconds.append((Clock.now() - before) / CHUNK_STEPS)
            tokens = np.asarray(tokens)
            first = tokens if first is None else first
            report(
                **line,
                rows=len(tokens),
                milliseconds=round(1000 * min(seconds), 3),
                all_milliseconds=[round(1000 * one, 3) for one in seconds],
                tokens=float((tokens == first).mean()),
                temporary_gib=round(program.memory_analysis().temp_size_in_bytes / 2**30, 2),
            )


def lower(model, state: DecodingState, variant: str):
    """The traced decoding of `variant`, ready to compile, and the parameters that it takes."""
    options = compiler_options()
    if variant and options is None:
        raise SystemExit("--variants: are settings for a GPU; leave them empty here.")
    constants = {name: getattr(fused_attention, name) for name in ("BLOCK", "WARPS", "STAGES")}
    for setting in filter(None, variant.split("+")):
        name, value = setting.split("=")
        if name in constants:
            setattr(fused_attention, name, int(value))
        elif name == "one_graph":
            options |= {"xla_gpu_enable_command_buffer": GRAPH, "xla_gpu_command_buffer_unroll_loops": True}
        else:
            options |= {name: int(value) if value.isdigit() else {"true": True, "false": False}[value]}
    kept, engine.compiler_options = engine.compiler_options, lambda: options
    try:
        sampling = SamplingConfig(max_new_tokens=4 * SLOTS, **SAMPLING)
        generator = Generator(model, sampling, eos_token_ids=(-1,), batch_size=len(state.tokens))
        return generator._decode.lower(generator.state, state), generator.state
    finally:
        engine.compiler_options = kept
        for name, value in constants.items():
            setattr(fused_attention, name, value)


def half_way(model, queries: int) -> DecodingState:
    """Prompts of 136 tokens, each with five answers."""
    text, rows = model.config.text, queries * SAMPLES
    shape = (text.num_hidden_layers, queries, text.num_key_value_heads, WIDTH, text.head_dim)
    like = KeysValues(*[jax.ShapeDtypeStruct(shape, model.dtype)] * 2)

    def stored(key):  # the same in all layers, which takes no second copy to make
        one = jax.random.normal(key, shape[1:], jnp.float32).astype(model.dtype)
        return jnp.broadcast_to(one, shape)

    make = jax.jit(lambda: Cache.empty(like, queries, WIDTH, SAMPLES, SLOTS).answers)
    prompts = KeysValues(*map(jax.jit(stored), jax.random.split(jax.random.key(1))))
    cache = Cache(prompts, jnp.full(queries, WIDTH, jnp.int32), make(), jnp.zeros((rows, SLOTS), bool))
    return at_start(
        DecodingState(
            cache=cache,
            tokens=None,
            positions=None,
            made=None,
            active=None,
            seeds=jnp.arange(rows, dtype=jnp.uint32),
            seen=jnp.zeros((rows, text.vocab_size), bool),
            slot=None,
        )
    )


def at_start(state: DecodingState) -> DecodingState:
    """The state with half of its slots in use; what a chunk has written lies behind them."""
    rows, half = state.seeds.shape[0], SLOTS // 2
    valid = jnp.broadcast_to(jnp.arange(SLOTS) < half, (rows, SLOTS))
    return state.replace(
        cache=state.cache.replace(valid=jnp.array(valid)),
        tokens=jnp.arange(rows, dtype=jnp.int32),
        positions=jnp.full(rows, WIDTH + half, jnp.int32),
        made=jnp.full(rows, half + 1, jnp.int32),
        active=jnp.ones(rows, bool),
        seen=jnp.zeros_like(state.seen),
        slot=jnp.int32(half),
    )


if __name__ == "__main__":
    main()
