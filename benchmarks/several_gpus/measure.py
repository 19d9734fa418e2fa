"""Measures training, extraction and generation on meshes over all devices, against one device."""

import shutil
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import median_seconds
from generation import SAMPLING

from rrs_jax.config.training import OptimiserConfig
from rrs_jax.distributed.mesh import AXES, mesh_of, replicated
from rrs_jax.frozen.extraction import extract_reps
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.models.stack import compiler_options
from rrs_jax.train.checkpoints import Checkpoints, Position
from several_gpus.collectives import by_kind, planned_step, read_collectives
from several_gpus.workload import (
    LOSSES,
    ONE,
    Lines,
    Training,
    Work,
    build,
    clips,
    mesh_over,
    meshes_of,
    move,
    name_of,
    peaks_gib,
    program_gib,
    prompts,
    relative,
)

SAVED_AT = 5  # step of `LOSSES` behind which a checkpoint is written, for the next mesh to go on from
LINKS = (2**21, 2**24, 2**25, 2**26, 2**27)  # bytes of the collectives that are timed by themselves
CPU_LINKS = LINKS[:1]


def train(work: Work, lines: Lines, only: str | None = None) -> None:
    """Losses, seconds, memory and collectives of the step on every mesh; each goes on from the checkpoint of
    the one before."""
    chosen = [*meshes_of(len(jax.devices())), ONE]
    if only:
        chosen = [sizes for sizes in chosen if name_of(sizes) in only.split("/")]
    model = build(work, mesh_over(chosen[0]))
    found, saved = {}, None
    folder = Path(tempfile.mkdtemp(prefix="several_gpus_"))
    try:
        for sizes in chosen:
            model = move(model, mesh_over(sizes))
            facts, saved = one_mesh(model, work, sizes, folder, saved)
            found[name_of(sizes)] = facts
            lines.write("train", mesh=name_of(sizes), batch=work.batch, **facts)
            more_rows(model, work, sizes, lines)
    finally:
        shutil.rmtree(folder)
    if "one" not in found:
        return
    one = found["one"]
    for name, facts in found.items():
        lines.write(
            "losses",
            mesh=name,
            largest_difference=relative(facts["losses"], one["losses"]),
            of_the_order_of_rows=relative(one["losses_of_reversed_rows"], one["losses"]),
            share_of_linear=one["seconds"] / facts["seconds"] / facts["devices"] if name != "one" else 1.0,
        )


def one_mesh(model, work: Work, sizes: tuple[int, int, int], folder: Path, saved) -> tuple[dict, tuple]:
    """Returns what `train` tells of a mesh, and the step, folder and next loss of its checkpoint."""
    training = Training(model, work, mesh_over(sizes), work.batch, OptimiserConfig(learning_rate=1e-4))
    start = time.perf_counter()
    program = training.compile()
    facts = {"devices": int(np.prod(sizes)), "compile_seconds": round(time.perf_counter() - start, 1)}
    mesh = dict(zip(AXES, sizes, strict=True))
    item = jnp.dtype(work.dtype).itemsize
    kinds = by_kind(read_collectives(program.as_text()))
    facts["collectives"] = {kind: row for kind, row in kinds.items() if row["times"]}
    facts["planned"] = planned_step(model.config.text, work.rank, work.batch, work.length, mesh, item)
    facts |= program_gib(program)

    here = folder / name_of(sizes).replace(", ", "-").replace(" ", "")
    losses, state = [], training.step.init()
    with Checkpoints(here, 1) as checkpoints:
        for number, (after, loss) in enumerate(training.losses(state, range(LOSSES)), 1):
            losses.append(loss)
            if number == SAVED_AT:
                checkpoints.save(after, Position(number, 0, number, 0, 0.0, "several_gpus"), loss)
            state = after
    facts["losses"] = losses
    if saved:
        facts["continued"] = continued(training, *saved)
    if sizes == ONE:
        turned = training.losses(training.step.init(), range(LOSSES), slice(None, None, -1))
        facts["losses_of_reversed_rows"] = [loss for _, loss in turned]
    facts["seconds"] = seconds_of(training, work, state)
    facts["peak_gib"] = peaks_gib()
    return facts, (name_of(sizes), here, losses[SAVED_AT])


def continued(training: Training, name: str, folder: Path, expected: float) -> dict:
    """Goes on from another mesh's checkpoint: its next loss, and that of the mesh that wrote it."""
    with Checkpoints(folder, 1) as checkpoints:
        state, position = checkpoints.restore(SAVED_AT, training.step.init())
    (_, loss), *_ = training.losses(state, range(SAVED_AT, SAVED_AT + 1))
    return {"from": name, "step": position.step, "loss": loss, "expected": expected}


def seconds_of(training: Training, work: Work, state) -> float:
    """Returns the median seconds of a step."""
    rows = training.batch(0)

    def one_step():
        nonlocal state
        state, metrics, _ = training.step(state, training.bank, rows)
        return metrics.loss

    return median_seconds(one_step, jax.block_until_ready, work.steps)


def more_rows(model, work: Work, sizes: tuple[int, int, int], lines: Lines) -> None:
    """The step with as many rows on each device as the whole batch has; of one device with half of them."""
    rows = work.batch // 2 if sizes == ONE else work.batch * sizes[0] * sizes[1]
    if rows == work.batch:
        return
    training = Training(model, work, mesh_over(sizes), rows, OptimiserConfig())
    seconds = seconds_of(training, work, training.step.init())
    lines.write("rows", mesh=name_of(sizes), devices=int(np.prod(sizes)), batch=rows, seconds=seconds)


def extract(work: Work, lines: Lines) -> None:
    """Representations a second on all devices, each with as many rows as one has alone, and on one."""
    n = len(jax.devices())
    alone = None
    model = build(work, mesh_over(ONE))
    for sizes in dict.fromkeys((ONE, (n, 1, 1), (1, n, 1))):
        model = move(model, mesh_over(sizes))
        rows = work.batch * sizes[0] * sizes[1]
        batch, bank = prompts(work, rows, model.config.text.vocab_size, 3), clips(model)
        bank = jax.device_put(bank, replicated(mesh_of(model)))
        first = np.asarray(extract_reps(model, batch, bank))[: work.batch]
        seconds = median_seconds(
            lambda model=model, batch=batch, bank=bank: extract_reps(model, batch, bank),
            jax.block_until_ready,
            work.steps,
        )
        alone = (first, rows / seconds) if alone is None else alone
        lines.write(
            "extract",
            mesh=name_of(sizes),
            devices=int(np.prod(sizes)),
            batch=rows,
            seconds=seconds,
            a_second=rows / seconds,
            share_of_linear=rows / seconds / alone[1] / np.prod(sizes),
            difference=float(np.linalg.norm(first[: len(alone[0])] - alone[0]) / np.linalg.norm(alone[0])),
        )


def generate(work: Work, lines: Lines, queries: int, new_tokens: int) -> None:
    """Responses a second on all devices, each with `queries` × 5 answers in flight, and on one."""
    n, samples, alone = len(jax.devices()), 5, None
    model = build(work, mesh_over(ONE))
    audio = int(np.atleast_1d(model.config.audio_token_id)[0])
    sampling = SamplingConfig(max_new_tokens=new_tokens, **SAMPLING)
    for sizes in dict.fromkeys((ONE, (n, 1, 1))):
        model = move(model, mesh_over(sizes))
        bank = jax.device_put(clips(model), replicated(mesh_of(model)))
        asked = queries * sizes[0]
        batch = prompts(work, asked, min(model.config.text.vocab_size, audio), 4)
        requests = []
        for query, (ids, length) in enumerate(zip(batch.input_ids, batch.lengths, strict=True)):
            ids = ids[:length].tolist()
            ids[16:96] = [audio] * 80
            row = (ids, [0], [80])
            requests += [Prompt((query, i), row, query * 100 + i) for i in range(samples)]
        generator = Generator(model, sampling, eos_token_ids=(-1,), batch_size=asked * samples)
        times = []
        for _ in range(3):
            answers, start = {}, time.perf_counter()
            generator.generate(requests, bank, answers.__setitem__)
            times.append(time.perf_counter() - start)
        seconds = min(times[1:])
        alone = (answers, len(requests) / seconds) if alone is None else alone
        equal = sum(answers[key] == tokens for key, tokens in alone[0].items())
        lines.write(
            "generate",
            mesh=name_of(sizes),
            devices=int(np.prod(sizes)),
            answers=len(requests),
            new_tokens=new_tokens,
            first_seconds=times[0],
            seconds=seconds,
            a_second=len(requests) / seconds,
            share_of_linear=len(requests) / seconds / alone[1] / sizes[0],
            equal_answers=equal / len(alone[0]),
            peak_gib=peaks_gib(),
        )


def links(lines: Lines) -> None:
    """Seconds of collectives over all devices by themselves, of arrays of several sizes (`LINKS` bytes)."""
    mesh = mesh_over((len(jax.devices()), 1, 1))
    whole, cut = replicated(mesh), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for size in CPU_LINKS if jax.default_backend() == "cpu" else LINKS:
        numbers = jax.device_put(jnp.ones((size // 2,), jnp.bfloat16), cut)
        parts = jax.device_put(jnp.ones((mesh.size, size // 2), jnp.bfloat16), cut)
        for kind, function, argument in (
            ("all-gather", lambda x: x, numbers),
            ("all-reduce", lambda x: jnp.sum(x, axis=0), parts),
        ):
            run = jax.jit(function, out_shardings=whole, compiler_options=compiler_options())
            seconds = median_seconds(
                lambda run=run, argument=argument: run(argument), jax.block_until_ready, 20
            )
            sent = size * (mesh.size - 1) / mesh.size * (2 if kind == "all-reduce" else 1)
            lines.write(
                "links",
                kind=kind,
                devices=mesh.size,
                bytes=size,
                seconds=seconds,
                sent_a_second=sent / seconds,
            )
