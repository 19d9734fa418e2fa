"""`generate.batch_size=auto` against fixed numbers, and its memory on cards of other sizes.

    python benchmarks/answers_in_flight.py                        # one GPU: speed at Qwen2-Audio's size
    python benchmarks/answers_in_flight.py --model=1.5b           # and at 1.5 B parameters
    python benchmarks/answers_in_flight.py --cards=24,40,80,141   # memory, each card in a process of its own
    python benchmarks/answers_in_flight.py --model=tiny --answers=8,16 --queries=8    # any computer

Random weights; prompts of 136 tokens with a clip in each, five answers to each prompt. Speed: all answers
have `--new_tokens`; a small fixed number answers fewer prompts, four waves of them. Memory: the process gets
the share of this GPU's memory that it would have of a card of so many GB, answers end at random or at 256
tokens, and the peak is the allocator's; beside it stands what the compiled functions need by XLA's own
account, which the estimate of `rrs_jax.generate.memory` must not stay below.
"""

import argparse
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from common import GIB, SIZES, Clock, report

from rrs_jax.distributed.machine import MEMORY_SHARE, MEMORY_VARIABLE, memory_share
from rrs_jax.mini.model_table import MODELS

SAMPLES, WIDTH, CLIP_TOKENS, WAVES = 5, 136, 75, 4
SAMPLING = dict(temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.1)
# The benchmarks' own `small` is a stand-in for computers without a GPU.
VALUES = SIZES | {"1.5b": MODELS["small"].config()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen2-audio", choices=VALUES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--answers", default="640,512,256,128,64,16", help="fixed numbers; auto comes first")
    parser.add_argument("--queries", type=int, default=256, help="prompts, each asked five times")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=100, help="no number is begun after them")
    parser.add_argument("--cards", default="", help="GB, with commas between")
    parser.add_argument("--one_card", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cards:
        sys.exit(max(on_card(float(card)) for card in arguments.cards.split(",")))
    os.environ.update(memory_share())  # before JAX is imported
    (one_card if arguments.one_card else speed)(arguments)


def speed(arguments: argparse.Namespace) -> None:
    import jax

    start = Clock.now()
    model = jax.block_until_ready(random_model(arguments))
    built = Clock.now() - start
    wanted = ["auto", *map(int, arguments.answers.split(","))]
    generators, flights, asked = {}, {}, {}
    for size in wanted:
        queries = arguments.queries
        if size != "auto":
            queries = min(queries, max(1, WAVES * size // SAMPLES))
        generator = make_generator(model, arguments.new_tokens, size, (-1,))
        flight = generator._flight(queries, SAMPLES, WIDTH)
        asked[size], flights[size] = queries, (flight, queries)
        generators.setdefault(flight, generator)
    bank = audio_bank(model)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: prepare(item[1], item[0], bank), generators.items()))
    report(part="start", weights_seconds=round(built, 1), seconds=round(Clock.now() - start, 1))
    rates = {}
    for size in wanted:
        flight, queries = flights[size]
        if flights[size] not in rates:
            if Clock.now() - start > arguments.seconds:
                continue
            rates[flights[size]] = rate(generators[flight], prompts(model, queries), bank)
        report(
            model=arguments.model,
            asked=size,
            in_flight=flight.queries * SAMPLES,
            responses=queries * SAMPLES,
            peak_gib=peak_gib(),
            **rates[flights[size]],
        )
    measured = {size: rates[flights[size]]["responses_a_second"] for size in wanted if flights[size] in rates}
    print(table(measured, {size: flights[size][0].queries * SAMPLES for size in measured}))


def table(measured: dict, in_flight: dict) -> str:
    """Responses a second by what was asked for, and each against auto's."""
    lines = ["| generate.batch_size | in flight | responses/s | auto is faster by |", "|---|---:|---:|---:|"]
    for size, value in measured.items():
        lines.append(f"| {size} | {in_flight[size]} | {value:.1f} | {measured['auto'] / value - 1:+.1%} |")
    return "\n".join(lines)


def rate(generator, asked: list, bank) -> dict:
    """The best of two runs behind a first one, in which what is left to compile is compiled."""
    seconds = []
    for _ in range(3):
        start, answers = Clock.now(), {}
        generator.generate(asked, bank, answers.__setitem__)
        seconds.append(Clock.now() - start)
    if len(answers) != len(asked):
        raise AssertionError("a prompt without an answer")
    return {
        "responses_a_second": round(len(asked) / min(seconds[1:]), 2),
        "first_seconds": round(seconds[0], 2),
        "seconds": [round(value, 2) for value in seconds[1:]],
    }


def on_card(gigabytes: float) -> int:
    """Runs `one_card` with the memory of a card of so many GB; returns the exit status."""
    told = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    share = MEMORY_SHARE * min(1.0, gigabytes * 1e9 / (int(told.split()[0]) * 2**20))
    words = [word for word in sys.argv[1:] if not word.startswith("--cards")]
    return subprocess.run(
        [sys.executable, str(Path(__file__)), *words, "--one_card"],
        check=False,
        env=os.environ | {MEMORY_VARIABLE: f"{share:.4f}"},
    ).returncode


def one_card(arguments: argparse.Namespace) -> None:
    """Three waves of answers that end at every hundredth token of the vocabulary, or behind 256 tokens."""
    import jax

    from rrs_jax.distributed.memory import device_memory, free_memory

    model = filled_model(arguments)
    bank, vocabulary = audio_bank(model), model.config.text.vocab_size
    generator = make_generator(model, 256, "auto", range(0, vocabulary, 100))
    gc.collect()
    free, before = free_memory(), device_memory() - free_memory()
    number = generator.plan.fitting(10_000, SAMPLES, WIDTH, free)
    asked = prompts(model, 3 * number // SAMPLES)
    flight = generator._flight(len(asked) // SAMPLES, SAMPLES, WIDTH)
    answers: dict = {}
    start = Clock.now()
    generator.generate(asked, bank, answers.__setitem__)
    seconds = Clock.now() - start
    lengths = sorted(map(len, answers.values()))
    peak = ((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) - before) / GIB
    compiled = prepare(generator, flight, bank)
    report(
        part="card",
        model=arguments.model,
        memory_gib=round(device_memory() / GIB, 2),
        free_gib=round(free / GIB, 2),
        batch_size=number,
        in_flight=flight.queries * SAMPLES,
        estimate_gib=round(generator.plan.bytes(flight) / GIB, 2),
        peak_gib=round(peak, 2),
        compiled_gib={name: round(size / GIB, 2) for name, size in compiled.items()},
        responses=len(answers),
        mean_tokens=round(sum(lengths) / len(lengths), 1),
        longest=lengths[-1],
        seconds=round(seconds, 1),
    )


def builder(arguments: argparse.Namespace):
    """A function that gives the model's module."""
    import jax.numpy as jnp

    from rrs_jax.models.architectures import part

    values = VALUES[arguments.model]
    model_class = part("models", values).MODEL
    config = model_class.config_class.from_hf(values)
    return lambda: model_class(config, dtype=jnp.dtype(arguments.dtype))


def random_model(arguments: argparse.Namespace):
    import jax

    from rrs_jax.distributed.mesh import make_mesh
    from rrs_jax.models import random_init

    return random_init.random_model(builder(arguments), mesh=make_mesh(devices=jax.devices()[:1]))


def filled_model(arguments: argparse.Namespace):
    """Weights that need no more memory than their own while they are made, as random ones do: the allocator's
    peak is then generation's."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from rrs_jax.distributed.mesh import make_mesh, replicated

    graphdef, state = nnx.split(nnx.eval_shape(builder(arguments)))
    sharding = replicated(make_mesh(devices=jax.devices()[:1]))

    def waves(shape, dtype, phase):
        places = (jax.lax.broadcasted_iota(jnp.float32, shape, axis) for axis in range(len(shape)))
        angles = sum(place * (0.7 + 1.3 * axis) for axis, place in enumerate(places))
        return ((2 / shape[-1]) ** 0.5 * jnp.sin(angles + phase)).astype(dtype)

    def filled(index, path, leaf):
        name = ".".join(map(str, path))
        if name.endswith("norm.weight"):
            return jnp.ones(leaf.shape, leaf.dtype, device=sharding)
        return jax.jit(waves, static_argnums=(0, 1), out_shardings=sharding)(leaf.shape, leaf.dtype, index)

    flat = [
        (path, leaf.replace(filled(index, path, leaf)))
        for index, (path, leaf) in enumerate(nnx.to_flat_state(state))
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def make_generator(model, new_tokens: int, batch_size, eos):
    from rrs_jax.generate import Generator, SamplingConfig

    sampling = SamplingConfig(max_new_tokens=new_tokens, **SAMPLING)
    return Generator(model, sampling, eos_token_ids=list(eos), batch_size=batch_size)


def audio_bank(model):
    import jax

    from rrs_jax.distributed.mesh import mesh_of, replicated

    shape = 64 * CLIP_TOKENS, model.config.text.hidden_size
    return jax.device_put(
        jax.random.normal(jax.random.key(1), shape, model.dtype), replicated(mesh_of(model))
    )


def prompts(model, queries: int) -> list:
    import numpy as np

    from rrs_jax.generate import Prompt

    rng, found = np.random.default_rng(0), []
    audio = int(np.atleast_1d(model.config.audio_token_id)[0])
    for query in range(queries):
        ids = rng.integers(0, min(model.config.text.vocab_size, audio) - 8, WIDTH).tolist()
        ids[8 : 8 + CLIP_TOKENS] = [audio] * CLIP_TOKENS
        row = (ids, [query % 64 * CLIP_TOKENS], [CLIP_TOKENS])
        found += [Prompt(key=(query, i), row=row, seed=query * 100 + i) for i in range(SAMPLES)]
    return found


def flight_slots(plan) -> list[int]:
    """The sizes to which a flight's cache grows."""
    from rrs_jax.generate.steps import CHUNK_STEPS

    found = [min(CHUNK_STEPS, plan.most_slots())]
    while found[-1] < plan.most_slots():
        found.append(min(found[-1] * plan.growth(), plan.most_slots()))
    return found


def prepare(generator, flight, bank) -> dict[str, float]:
    """Compiles prefill and decoding for a flight, side by side; returns what each needs on the device besides
    weights and clips while everything that is in flight lies there, in bytes by XLA's account."""
    import jax
    import jax.numpy as jnp

    from rrs_jax.distributed.mesh import batch_sharding
    from rrs_jax.generate.state import empty_state
    from rrs_jax.generate.steps import AskedAnswers
    from rrs_jax.models.batch import Batch

    def at(sharding, *shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def laid(tree, shardings):
        return jax.tree.map(lambda leaf, to: at(to, *leaf.shape, dtype=leaf.dtype), tree, shardings)

    rows, sizes = batch_sharding(generator.mesh), (flight.prefill, flight.width)
    batch = Batch(at(rows, *sizes), at(rows, flight.prefill), at(rows, *sizes))
    answers = flight.prefill, flight.samples
    asked = AskedAnswers(at(rows, *answers, dtype=jnp.uint32), at(rows, *answers, dtype=bool))
    prefill, decode = generator._prefill, generator._decode
    entered = jax.eval_shape(prefill, generator.state, batch, bank, asked)
    entered = laid(entered, spread(generator.on_mesh.entered, entered))
    states = []
    for slots in flight_slots(generator.plan):
        state = jax.eval_shape(
            partial(empty_state, queries=flight.queries, width=flight.width, slots=slots), entered
        )
        states.append(laid(state, spread(generator.on_mesh.laid, state)))
    with ThreadPoolExecutor(len(states)) as pool:
        decoding = [
            pool.submit(lambda each=each: decode.lower(generator.state, each).compile()) for each in states
        ]
        prefilling = prefill.lower(generator.state, batch, bank, asked).compile()
        compiled = {
            each.cache.valid.shape: done.result() for each, done in zip(states, decoding, strict=True)
        }
    generator._prefill = prefilling
    generator._decode = lambda parameters, state: compiled.get(state.cache.valid.shape, decode)(
        parameters, state
    )
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states[-1]))
    return {
        "state": held,
        "while prefilling": held + extra_bytes(prefilling),
        "while decoding": held + max(map(extra_bytes, compiled.values())),
    }


def spread(shardings, like):
    """A tree of shardings whose leaves stand for whole subtrees, with one for each leaf of `like`."""
    import jax

    return jax.tree.map(
        lambda sharding, part: jax.tree.map(lambda _: sharding, part),
        shardings,
        like,
        is_leaf=lambda node: isinstance(node, jax.sharding.Sharding),
    )


def extra_bytes(compiled) -> float:
    """Working memory and results, without those that lie where an argument lay."""
    told = compiled.memory_analysis()
    return told.temp_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes


def peak_gib() -> float | None:
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return round(stats["peak_bytes_in_use"] / GIB, 2) if "peak_bytes_in_use" in stats else None


if __name__ == "__main__":
    main()
