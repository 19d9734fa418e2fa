"""Bytes that a training step sends between eight CPU devices, against what its mesh is planned to send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from several_gpus.collectives import Collective, by_kind, planned_step, read_collectives
from several_gpus.predict import fit, sizes_of

from rrs_jax.config.training import OptimiserConfig
from rrs_jax.distributed.mesh import AXES, make_mesh
from rrs_jax.models.audio_encoder import AudioEncoderConfig
from rrs_jax.models.batch import Batch
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from rrs_jax.models.random_init import random_model
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.step import Rows, TrainStep

TEXT = DecoderConfig(64, 192, 5, 4, 2, 16, 512, 1e-5, 1000.0, False)
RANK, ROWS, LENGTH = 1, 8, 24


def compiled(sizes: tuple[int, int, int]):
    """Returns the training step on a mesh of these sizes, and its program."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    config = Qwen2AudioConfig(AudioEncoderConfig(24, 1, 3, 40, 12, 1500), TEXT, 500)
    model = random_model(lambda: Qwen2Audio(config, dtype=jnp.float32, lora=LoRAConfig(RANK)), mesh=mesh)
    strategy = RRS(np.ones((ROWS, TEXT.hidden_size), np.float32))
    step = TrainStep(model, strategy, OptimiserConfig(), mesh, 1)
    ids = np.random.default_rng(0).integers(3, 500, (ROWS, LENGTH)).astype(np.int32)
    batch = Batch(ids, np.full(ROWS, LENGTH, np.int32), np.full_like(ids, -1))
    rows = Rows(
        batch, strategy.examples(np.arange(ROWS)), np.arange(ROWS) % 2 == 0, np.ones(ROWS, np.float32)
    )
    bank = jax.device_put(jnp.zeros((1, TEXT.hidden_size)), step.replicated)
    return step, step.lower(step.init(), bank, step.place(rows)).compile()


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (4, 1, 2), (2, 2, 2)])
def test_a_step_sends_what_is_planned(sizes):
    """Weights gathered where they need not be, or rows that are not cut, would be a multiple of it."""
    step, program = compiled(sizes)
    found = by_kind(read_collectives(program.as_text()))
    planned = planned_step(TEXT, RANK, ROWS, LENGTH, dict(zip(AXES, sizes, strict=True)), 4)
    if sizes[2] > 1:  # XLA for a CPU sends the sums of q, k, v, gate and up one by one, not two joined
        states = ROWS * LENGTH * TEXT.hidden_size * 4 / (sizes[0] * sizes[1])
        planned["all-reduce"] += 3 * (TEXT.num_hidden_layers - 1) * states
    for kind, size in planned.items():
        assert found[kind]["bytes"] == pytest.approx(size, rel=0.1, abs=3000), kind
    linear = max(a * b for a, b in TEXT.linears().values()) * 4 / sizes[2]
    if sizes[1] > 1:  # one matrix at a time, never a stack of them
        assert found["all-gather"]["largest"] == linear


@pytest.mark.parametrize("sizes", [(1, 2, 1), (1, 2, 2)])
def test_a_device_holds_its_part_of_the_weights_and_of_the_rows(sizes):
    step, program = compiled(sizes)
    _, alone = compiled((1, 1, 1))
    layers = step.base["language_model"]["layers"]
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(layers) if leaf.ndim == 3)
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(layers) if leaf.ndim == 3)
    assert own == whole / (sizes[1] * sizes[2])
    # Temporary memory: a part of what one device keeps of its rows, and a layer's matrices, gathered.
    ours, theirs = program.memory_analysis(), alone.memory_analysis()
    layer = whole / TEXT.num_hidden_layers / sizes[2]
    assert ours.temp_size_in_bytes < 1.1 * theirs.temp_size_in_bytes / sizes[1] + 3 * layer
    assert ours.argument_size_in_bytes < theirs.argument_size_in_bytes - 0.9 * (whole - own)


def test_a_program_for_gpus_is_read():
    """Lines as XLA writes them for GPUs: what is started gives a tuple of its operands and its results."""
    text = """HloModule jit__fused, is_scheduled=true

%add.1 (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.0 = f32[] add(%x, %y)
}

%body.1 (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %all-gather-start.2 = ((bf16[4,4]{1,0}), bf16[8,4]{1,0}) all-gather-start(%bitcast.1), channel_id=2, \
replica_groups=mesh['data'=3,'fsdp'=2,'tensor'=1] {'fsdp'}, dimensions={0}, \
metadata={op_name="jit/while/body"}
  %all-gather-done.2 = bf16[8,4]{1,0} all-gather-done(%all-gather-start.2)
  %all-reduce.7 = (bf16[6]{0}, f32[2]{0}) all-reduce(%a, %b), channel_id=3, \
replica_groups={{0,1,2},{3,4,5}}, to_apply=%add.1
}

ENTRY %main.1 (q: f32[]) -> f32[] {
  %while.1 = (s32[], bf16[8,4]) while(%t), condition=%c, body=%body.1, \
backend_config={"known_trip_count":{"n":"31"}}
  %all-reduce-start.3 = ((f32[6]{0}), f32[6]{0}) all-reduce-start(%w), \
replica_groups=[2,3]<=[6], to_apply=%add.1
  %reduce-scatter.1 = f32[2]{0} reduce-scatter(%w), \
replica_groups=[1,6]<=[6], dimensions={0}, to_apply=%add.1
}
"""
    assert read_collectives(text) == [
        Collective("all-gather", 64, 2, 31, "jit/while/body"),
        Collective("all-reduce", 20, 3, 31, ""),
        Collective("all-reduce", 24, 3, 1, ""),
        Collective("reduce-scatter", 48, 6, 1, ""),
    ]
    assert read_collectives(text)[0].sent == 31 * 32
    assert read_collectives(text)[2].sent == pytest.approx(2 * 24 * 2 / 3)


def measured(part: str, **facts) -> dict:
    return {"part": part, "length": 100, **facts}


def test_a_prediction_is_arithmetic_and_bytes_over_links():
    """Cards that take 4 ms and 1 ms a row; collectives that start in 10 µs, and by themselves in 100, over
    links of 100 GB/s (sums) and 200 GB/s (gathers); half of the gathers hidden."""
    text = DecoderConfig(4000, 10000, 10, 40, 40, 100, 512, 1e-5, 1000.0, False)
    layer = (4 * 4000 * 4000 + 3 * 4000 * 10000) * 2  # bytes
    packed = 8 * (3 * (4000 + 12000) + 8000 + 2 * (4000 + 20000) + 14000) * 2
    links = [
        measured("links", kind=kind, seconds=1e-4 + sent / rate, sent_a_second=sent / (1e-4 + sent / rate))
        for kind, rate in (("all-gather", 2e11), ("all-reduce", 1e11))
        for sent in (1e6, 1e7, 1e8)
    ]
    gathers = 19 * 7 * 1e-5 + 19 * layer / 2 / 2e11
    sums, words = 10 * 1e-5 + 10 * packed / 1e11, 1e-5 + 16 * 100 * 4000 * 2 / 2 / 2 / 2e11
    # Two sums of hidden states a layer and direction, but one in the last; thin products of 7 × 8 numbers.
    states = 38 * 16 * 100 * 4000 * 2 + 9 * 7 * 16 * 100 * 8 * 2
    cut = 10 * 8 * (12000 + 4000 + 20000 + 10000) * 2
    tensor = 38 * 1e-5 + states / 1e11 + 1e-5 + cut / 2 / 2e11
    steps = [
        measured("train", mesh="one", batch=16, seconds=0.020),
        measured("rows", mesh="one", batch=8, seconds=0.012),
        measured("train", mesh="fsdp 2", batch=16, seconds=0.012 + gathers / 2 + sums + words),
        measured("train", mesh="tensor 2", batch=16, seconds=0.012 + tensor),
        measured("rows", mesh="data 2", batch=32, seconds=0.020 + sums),
    ]
    cards, rows = fit(links + steps, text, 2, 50e9)
    assert (cards.fixed, cards.each) == pytest.approx((0.004, 0.001))
    assert cards.gathers == pytest.approx(0.5, abs=0.01)
    off = {(row["mesh"], row["batch"]): row["off"] for row in rows}
    assert max(map(abs, off.values())) < 1e-3
    # Over hosts a card's share of the network is the limit, and each further host is a hop.
    slow = 2 * 63 / 64 * 10 * packed / 1e11 + 10 * (1e-5 + 7 * 2e-5)
    assert cards.step(1024, sizes_of("data 64")) == pytest.approx(0.020 + slow, rel=1e-3)
