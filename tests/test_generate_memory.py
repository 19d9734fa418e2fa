"""The memory of answers in flight against XLA's account of the compiled functions, and the number chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.answers import EOS
from rrs_jax.distributed import memory
from rrs_jax.distributed.machine import MEMORY_SHARE, available_memory, machine_memory
from rrs_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from rrs_jax.generate import Generator, Prompt, SamplingConfig, engine
from rrs_jax.generate.memory import USED_SHARE, Flight, FlightPlan
from rrs_jax.generate.state import empty_state
from rrs_jax.generate.steps import AskedAnswers
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.qwen2_audio import Qwen2AudioConfig
from rrs_jax.models.released import RELEASED
from rrs_jax.weights.load import abstract_model, load_weights

SAMPLING = SamplingConfig(temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.1)
TEXT = Qwen2AudioConfig.from_hf(RELEASED["qwen2-audio"]).text


def on_devices(tree, sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def compiled_bytes(generator: Generator, flight: Flight) -> dict[str, float]:
    """Bytes of a device while each of the functions runs and everything in flight lies there, without
    parameters and clips."""
    mesh, plan = generator.mesh, generator.plan
    rows = batch_sharding(mesh)
    ids = jax.ShapeDtypeStruct((flight.prefill, flight.width), jnp.int32, sharding=rows)
    lengths = jax.ShapeDtypeStruct((flight.prefill,), jnp.int32, sharding=rows)
    bank = jax.ShapeDtypeStruct((100, plan.text.hidden_size), plan.dtype, sharding=replicated(mesh))
    seeds = jax.ShapeDtypeStruct((flight.prefill, flight.samples), jnp.uint32, sharding=rows)
    asked = AskedAnswers(seeds, jax.ShapeDtypeStruct(seeds.shape, bool, sharding=rows))
    entering = generator.state, Batch(ids, lengths, ids), bank, asked
    prefilling = generator._prefill.lower(*entering).compile()
    entered = jax.eval_shape(generator._prefill, *entering)
    state = jax.eval_shape(
        lambda like: empty_state(like, flight.queries, flight.width, plan.most_slots()), entered
    )
    put = generator.on_mesh.empty_state.lower(entered, flight.queries, flight.width, plan.most_slots())
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        put.compile().output_shardings,
    )
    held = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    decoding = generator._decode.lower(generator.state, state).compile()
    entered = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        entered,
        prefilling.output_shardings,
    )
    places = jax.ShapeDtypeStruct((flight.prefill,), jnp.int32)
    inserting = generator.on_mesh.insert.lower(state, entered, places).compile()
    half = jax.ShapeDtypeStruct((flight.queries // 2,), jnp.int32, sharding=rows)
    taking = generator.on_mesh._take_stored.lower(state.cache.answers.keys, half).compile()

    def more(compiled) -> float:
        told = compiled.memory_analysis()
        return told.temp_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes

    prefilled = prefilling.memory_analysis().output_size_in_bytes
    return {
        "prefill": held + more(prefilling),
        "insert": held + prefilled + more(inserting),
        "decode": held + more(decoding),
        "shrink": held + more(taking),
    }


def abstract_generator(values: dict, mesh, batch_size, lora=None, dtype=jnp.float32) -> Generator:
    model, _ = abstract_model(values, dtype, lora)
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, on_devices(state, replicated(mesh)))
    return Generator(model, SAMPLING, eos_token_ids=(1,), batch_size=batch_size)


@pytest.mark.parametrize("queries, lora", [(4, None), (128, LoRAConfig(8, 16.0, None))])
def test_the_estimate_at_a_released_size_is_not_below_the_compiled_functions(queries, lora):
    mesh = make_mesh(devices=jax.devices()[:1])
    generator = abstract_generator(RELEASED["qwen2-audio"], mesh, 5 * queries, lora)
    flight = Flight(queries, queries // 4, 5, 136)
    estimate, needed = generator.plan.bytes(flight), compiled_bytes(generator, flight)
    assert max(needed.values()) <= estimate, needed
    # Where the numbers of an answer's slots grow twofold, all smaller ones are as much again.
    assert estimate <= 2.1 * max(needed.values())


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)])
def test_the_estimate_on_several_devices_is_not_below_the_compiled_functions(folder, shape):
    """Only `data` cuts what is in flight."""
    mesh = make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    model = load_weights(folder, mesh=mesh)
    generator = Generator(model, SAMPLING, eos_token_ids=EOS, batch_size=64)
    flight = Flight(16, 8, 4, 24)
    estimate, needed = generator.plan.bytes(flight), compiled_bytes(generator, flight)
    assert max(needed.values()) <= estimate, needed


@pytest.mark.parametrize("card, least, most", [(24, 16, 40), (40, 64, 112), (80, 224, 320), (141, 448, 640)])
def test_the_number_on_cards_of_several_sizes(monkeypatch, card, least, most):
    """Qwen2-Audio in bfloat16, 15.7 GiB, five answers of 256 tokens a prompt; a kernel attends."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    plan = FlightPlan(TEXT, "bfloat16", "auto", 256, make_mesh(devices=jax.devices()[:1]))
    free = MEMORY_SHARE * card * 1e9 - 15.7 * 2**30
    number = plan.fitting(10_000, 5, 136, free)
    assert least <= number <= most
    flight = plan.flight(10_000, 5, 136, number)
    # The cache alone, while answers grow from 64 slots to 256: half a MiB a token.
    cache = flight.queries * (136 + 5 * (64 + 256)) * 2**19
    assert 0.7 * USED_SHARE * free < plan.bytes(flight) <= USED_SHARE * free and cache <= plan.bytes(flight)
    assert plan.fitting(10_000, 5, 136, 0.97 * free) in (number, *range(round(0.75 * number), number))


def test_no_more_places_than_answers_and_few_numbers(monkeypatch):
    plan = FlightPlan(TEXT, "float32", "auto", 64, make_mesh(devices=jax.devices()[:1]))
    frees = np.linspace(1, 64, 400) * 2**30
    numbers = {plan.fitting(10_000, 5, 136, free) for free in frees}
    assert max(numbers) == 128 and len(numbers) <= 40  # a CPU has enough with 128
    assert plan.flight(3, 5, 136, 64).queries == 3
    assert plan.flight(14, 5, 136, 64).queries == 7  # two equal waves, not 13 and 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    numbers = {plan.fitting(10_000, 5, 136, free * 4) for free in frees}
    assert max(numbers) == 1024 and len(numbers) <= 64
    assert plan.fitting(10_000, 5, 136, 0.0) == 1  # the least, and XLA says that it does not fit


def test_a_longer_answer_a_wider_cache_and_more_devices_count(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mesh, two = (make_mesh(devices=jax.devices()[:n]) for n in (1, 2))
    plan = functools.partial(FlightPlan, TEXT, "bfloat16")

    def number(plan):
        return plan.fitting(10_000, 5, 136, 20 * 2**30)

    assert number(plan("auto", 512, mesh)) < number(plan("auto", 256, mesh)) < number(plan("int8", 256, mesh))
    assert 1.8 <= number(plan("auto", 256, two)) / number(plan("auto", 256, mesh)) <= 2.2


def test_slots_of_the_longest_answer():
    plan = functools.partial(FlightPlan, TEXT, "float32", "auto", mesh=make_mesh(devices=jax.devices()[:1]))
    slots = {1: 16, 16: 16, 17: 16, 18: 32, 41: 48, 64: 64, 65: 64, 256: 256, 257: 256, 300: 304}
    assert {tokens: plan(new_tokens=tokens).most_slots() for tokens in slots} == slots


def test_a_generator_asks_for_the_memory_that_is_left_when_it_answers(folder, monkeypatch):
    model = load_weights(folder, mesh=make_mesh(devices=jax.devices()[:1]))
    generator = Generator(
        model, SamplingConfig(max_new_tokens=20, greedy=True), eos_token_ids=(-1,), batch_size="auto"
    )
    requests = [Prompt(key=i, row=([60 + i, 70, 80], [], [])) for i in range(12)]
    rows, decode = [], generator._decode
    generator._decode = lambda parameters, state: rows.append(len(state.tokens)) or decode(parameters, state)
    answers = {}
    for free in (2**30, generator.plan.bytes(Flight(3, 1, 1, 8)) / USED_SHARE):
        monkeypatch.setattr(engine, "least_free_memory", lambda mesh, free=free: free)
        answers[free] = {}
        generator.generate(requests, jnp.zeros((1, 48)), answers[free].__setitem__)
    assert max(rows) == 12 and min(rows) == 3 and len(rows) == 2 + 4 * 2
    few, many = answers.values()
    assert few == many and len(few) == 12


def test_free_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, **stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    devices = [Device(bytes_limit=100, bytes_in_use=n) for n in (30, 60, 10)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert (memory.device_memory(), memory.free_memory(), memory.least_free_memory()) == (100, 40, 40.0)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()] * 4)  # CPU devices, of one machine
    monkeypatch.setattr(memory, "available_memory", lambda: 400)
    assert (memory.device_memory(), memory.free_memory()) == (machine_memory(), 100)
    assert 0 < available_memory() < machine_memory()
