"""The loop: what is drawn, what is written, and a run that is stopped and goes on."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from rrs_jax.config.prompts import KEPT_TASKS, KEPT_TEXTS
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.errors import UserError
from rrs_jax.files import read_jsonl
from rrs_jax.models.lora import LoRAConfig
from rrs_jax.strategies.rrs import RRS
from rrs_jax.train.batches import Schedule, TrainConfig, TrainingData, units_of_two
from rrs_jax.train.checkpoints import Checkpoints, Position, named_leaves
from rrs_jax.train.loop import train
from rrs_jax.train.optimiser import learning_rates, make_optimiser
from rrs_jax.train.resumption import restore
from rrs_jax.train.step import OptimiserConfig, TrainState, TrainStep, abstract_state
from rrs_jax.weights.load import load_weights

SAMPLES, PROMPTS, AUDIO = 10, 3, 130
OPTIMISER = OptimiserConfig(learning_rate=5e-3, schedule="cosine", warmup_steps=2, clip_norm=5.0)
CONFIG = TrainConfig(
    epochs=4, batch_size=4, max_buckets=2, checkpoint_every_steps=5, seed=3, optimiser=OPTIMISER
)
# Their draws and, with it, dropout: micro-batches of two questions under different prompts.
AUTHORS = replace(CONFIG, gradient_accumulation=2, prompt_draw="micro_batch")
FIELDS = [
    "step",
    "epoch",
    "loss",
    "loss_harmful",
    "loss_benign",
    "penalty",
    "grad_norm",
    "samples_per_second",
    "learning_rate",
]


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """The runs below compile the same programs, one of them in a process of its own."""
    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in values}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache_module.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache_module.reset_cache()


def make_data() -> tuple[TrainingData, RRS]:
    rng = np.random.default_rng(0)
    table = []
    for sample in range(SAMPLES):
        clip = [AUDIO] * int(rng.integers(2, 6))
        for _ in range(PROMPTS):
            ids = rng.integers(3, 120, 2).tolist() + clip + rng.integers(3, 120, rng.integers(2, 9)).tolist()
            table.append((ids, [1 + sample], [len(clip)]))
    bank = rng.normal(size=(20, 48)).astype(np.float32)
    targets = rng.normal(size=(SAMPLES, 48)).astype(np.float32)
    data = TrainingData(
        sample_ids=[f"sample-{i}" for i in range(SAMPLES)],
        harmful=np.arange(SAMPLES) % 2 == 0,
        encode=lambda sample, prompt: table[sample * PROMPTS + prompt],
        num_prompts=PROMPTS,
        audio_bank=bank,
    )
    return data, RRS(targets)


def make_model(folder, dropout=0.0):
    lora = LoRAConfig(rank=2, dropout=dropout)
    return load_weights(folder, lora=lora, mesh=make_mesh(devices=jax.devices()[:1]), seed=3)


def run(folder, run_dir, config=CONFIG, strategy=None, dropout=0.0):
    """The trained adapters as arrays by name."""
    data, default = make_data()
    adapters = train_on(data, strategy or default, make_model(folder, dropout), run_dir, config)
    return {name: np.asarray(array) for name, array in named_leaves(adapters).items()}


def train_on(data, strategy, model, run_dir, config=CONFIG, **options):
    return train(model, strategy, Schedule(data, config, AUDIO, strategy.tails), run_dir, **options)


def read_metrics(run_dir) -> list[dict]:
    return read_jsonl(run_dir / "metrics.jsonl")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run that nobody interrupts: 4 epochs of 3 steps."""
    run_dir = tmp_path_factory.mktemp("whole")
    steps = []
    original = TrainStep.__init__

    def remember(self, *args, **kwargs):
        original(self, *args, **kwargs)
        steps.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__init__", remember)
        return run_dir, run(folder, run_dir), steps[0]


def test_metrics_and_checkpoints_of_a_run(whole):
    run_dir, adapters, step = whole
    rows = read_metrics(run_dir)
    assert [list(row) for row in rows] == [FIELDS] * 12
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["epoch"] for row in rows] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert np.isfinite([row["loss"] for row in rows]).all() and all(
        row["samples_per_second"] > 0 for row in rows
    )
    rises = [row["learning_rate"] for row in rows[:3]]  # two steps of warm-up to the highest rate
    np.testing.assert_allclose(rises, [0, 2.5e-3, 5e-3], atol=1e-9)
    assert rows[11]["learning_rate"] == pytest.approx(5e-3 * (1 + np.cos(np.pi * 0.9)) / 2)
    means = [np.mean([row["loss"] for row in rows if row["epoch"] == epoch]) for epoch in range(1, 5)]
    assert means[3] < 0.95 * means[0]
    assert step.compilations() <= 2  # one for each bucket
    assert list((run_dir / "tensorboard").glob("events*"))
    with Checkpoints(run_dir / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest() == 12
        best = checkpoints.best()
        assert best == 3 * (int(np.argmin(means)) + 1)
        assert {int(path.name) for path in (run_dir / "checkpoints").iterdir()} == {10, 12, best}


class Worsening(RRS):
    """Its targets run away from the model."""

    def examples(self, indices, *draws):
        object.__setattr__(self, "distance", getattr(self, "distance", 0) + 1)
        return {"target": self.distance * self.targets[indices]}


def test_the_best_checkpoint_outlives_the_last(folder, tmp_path):
    run(folder, tmp_path, replace(CONFIG, keep_checkpoints=1), Worsening(make_data()[1].targets))
    losses = np.reshape([row["loss"] for row in read_metrics(tmp_path)], (4, 3))
    assert losses.mean(1).argmin() == 0
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "12"}


class Stop(Exception):
    pass


class Stopping(RRS):
    """Raises while the eighth batch is put together, that is when step 7 runs."""

    def examples(self, indices, *draws):
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        if self.calls == 8:
            raise Stop
        return super().examples(indices, *draws)


def test_a_stopped_run_goes_on_bit_for_bit(folder, whole, tmp_path):
    _, expected, _ = whole
    with pytest.raises(Stop):
        run(folder, tmp_path, CONFIG, Stopping(make_data()[1].targets))
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest() == 6
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "epo')  # as a kill in the middle of a line leaves it
    adapters = run(folder, tmp_path)
    for name, array in expected.items():
        np.testing.assert_array_equal(adapters[name], array)
    ours, theirs = read_metrics(tmp_path), read_metrics(whole[0])
    assert [row["step"] for row in ours] == list(range(1, 13))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
    again = run(folder, tmp_path, replace(CONFIG, keep_checkpoints=3))  # nothing is left to do
    np.testing.assert_array_equal(again["lora.q_proj.lora_b"], expected["lora.q_proj.lora_b"])
    assert len(read_metrics(tmp_path)) == 12
    with pytest.raises(UserError, match="other training settings"):
        run(folder, tmp_path, replace(CONFIG, seed=4))


def test_the_mean_of_the_last_steps_adapters_is_the_result(folder, tmp_path):
    """The mean is that of five steps of the twelve, also where the run was stopped among them; the adapters'
    own way does not change."""
    config = replace(
        CONFIG, checkpoint_every_steps=1, keep_checkpoints=12, optimiser=replace(OPTIMISER, average=0.4)
    )
    data, strategy = make_data()
    model = make_model(folder)
    result = named_leaves(train_on(data, strategy, model, tmp_path / "whole", config))
    like = abstract_state(model, config.optimiser, make_mesh(devices=jax.devices()[:1]), 12)
    with Checkpoints(tmp_path / "whole" / "checkpoints", 12) as checkpoints:
        states = [checkpoints.restore(step, like)[0] for step in range(8, 13)]
    each = [named_leaves(state.lora) for state in states]
    restored = restore(model, config, data.sample_ids, data.harmful, tmp_path / "whole")
    for name, array in named_leaves(states[-1].mean).items():
        np.testing.assert_array_equal(result[name], array)
        np.testing.assert_array_equal(named_leaves(restored)[name], array)
        np.testing.assert_allclose(
            array, np.mean([one[name] for one in each], axis=0, dtype="float64"), atol=1e-7
        )
        assert not np.array_equal(array, each[-1][name])
    with pytest.raises(Stop):
        train_on(data, Stopping(strategy.targets), make_model(folder), tmp_path / "stopped", config)
    with pytest.raises(UserError, match="checkpoints: holds [0-9]+ of 12 steps; run the stage train again"):
        restore(model, config, data.sample_ids, data.harmful, tmp_path / "stopped")
    again = named_leaves(train_on(data, strategy, make_model(folder), tmp_path / "stopped", config))
    last = run(folder, tmp_path / "last")
    for name, array in result.items():
        np.testing.assert_array_equal(again[name], array)
        np.testing.assert_allclose(
            each[-1][name], last[name], atol=2e-5
        )  # of another program, over twelve steps of 5e-3


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_train_loop import AUTHORS, CONFIG, RRS, make_data, run

class Slow(RRS):
    def examples(self, indices, *draws):
        time.sleep(0.1)
        return super().examples(indices, *draws)

config, dropout = (AUTHORS, 0.1) if sys.argv[4] == "authors" else (CONFIG, 0.0)
strategy = Slow(make_data()[1].targets)
run(Path(sys.argv[1]), Path(sys.argv[2]), config, strategy, dropout)
"""


@pytest.mark.parametrize("kind", ["plain", "authors"])
def test_a_killed_run_goes_on_bit_for_bit(folder, whole, tmp_path, kind):
    """SIGKILL somewhere behind step 6, whatever is being written then; also with dropout."""
    tests = Path(__file__).parent
    settings = (AUTHORS, None, 0.1) if kind == "authors" else (CONFIG,)
    expected = whole[1] if kind == "plain" else run(folder, tmp_path / "whole", *settings)
    run_dir = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(tests.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(run_dir), str(tests), kind], env=environment
    )
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 7:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert metrics.read_text().count("\n") < 12
    adapters = run(folder, run_dir, *settings)
    for name, array in expected.items():
        np.testing.assert_array_equal(adapters[name], array)
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 13))


def test_every_epoch_has_each_sample_once_with_a_prompt_drawn_anew():
    data, _ = make_data()
    schedule = Schedule(data, replace(CONFIG, gradient_accumulation=2), AUDIO)
    assert len(schedule.buckets) <= 2
    drawn = []
    for epoch in range(30):
        (chosen, _), batches = schedule.epoch(epoch)
        assert len(batches) == schedule.config.steps_per_epoch(SAMPLES) == 3
        seen = np.concatenate([s.indices[s.weights > 0] for batch in batches for s in batch])
        assert sorted(seen) == list(range(SAMPLES))
        drawn.append(chosen)
    counts = [np.count_nonzero(np.array(drawn) == prompt) for prompt in range(PROMPTS)]
    assert min(counts) > 70  # of 300 draws, 100 expected
    assert len({tuple(chosen) for chosen in drawn}) == 30
    np.testing.assert_array_equal(schedule.epoch(7)[0].prompts, drawn[7])


def test_twins_come_in_one_micro_batch_under_one_prompt():
    """Three pairs, one of them with its harmful question in two voices, and four samples without a twin."""
    data, strategy = make_data()
    pairs = ["a", "a", "b", "c", "b", "d", "d", "e", "d", "f"]
    harmful = np.array([True, False, False, True, True, True, True, False, False, False])
    data = replace(data, pair_ids=pairs, harmful=harmful)
    twins = [{0, 1}, {2, 4}, {5, 8}]
    schedule = Schedule(data, replace(CONFIG, twins_together=True), AUDIO)
    beside = set()
    for epoch in range(20):
        draws, batches = schedule.epoch(epoch)
        assert len(batches) == schedule.config.steps_per_epoch(SAMPLES) == 3
        counted = np.concatenate([s.indices[s.weights > 0] for (s,) in batches])
        assert sorted(counted) == list(range(SAMPLES))
        for (selection,) in batches:
            units = selection.indices.reshape(-1, 2)
            assert (draws.prompts[units[:, 0]] == draws.prompts[units[:, 1]]).all()
            for one, other in units.tolist():
                held = [both for both in twins if both & {one, other}]
                assert held in ([], [{one, other}])
                if not held:
                    beside.add(frozenset((one, other)))
            assert schedule.rows(selection, draws, strategy).batch.input_ids.shape == (4, selection.length)
    assert len(beside) > 5  # those without a twin meet others in every epoch


@pytest.mark.parametrize("parts, group", [(1, 3), (2, 3), (3, 2)])
def test_a_micro_batch_draws_its_prompts_without_replacement(parts, group):
    """Groups of three; of two where a part of a step's batch has two rows. Ten samples fill the last up."""
    data, _ = make_data()
    config = replace(CONFIG, batch_size=6, gradient_accumulation=parts, prompt_draw="micro_batch")
    config = replace(config, prompt_group=3)
    schedule, beside, counts = Schedule(data, config, AUDIO), set(), np.zeros(PROMPTS)
    for epoch in range(30):
        (prompts, _), steps = schedule.epoch(epoch)
        assert len(steps) == config.steps_per_epoch(SAMPLES) == 2
        selections = [selection for step in steps for selection in step]
        counted = np.concatenate([one.indices[one.weights > 0] for one in selections])
        assert sorted(counted) == list(range(SAMPLES))
        for selection in selections:
            rows = zip(
                selection.indices.reshape(-1, group), selection.weights.reshape(-1, group), strict=True
            )
            for unit, weights in rows:
                own = unit[weights > 0].tolist()
                assert len({*prompts[own]}) == len(own)
                beside |= {frozenset((one, other)) for one in own for other in own if one != other}
            assert all(len(data.encode(i, prompts[i])[0]) <= selection.length for i in selection.indices)
        counts += np.bincount(prompts, minlength=PROMPTS)
    assert len(beside) > 20  # of 45 pairs
    assert counts.min() > 70  # of 300 draws, 100 expected
    np.testing.assert_array_equal(schedule.epoch(29)[0].prompts, prompts)


def test_the_example_of_the_schedule():
    """The steps that the docstring of `Schedule.epoch` shows."""
    lengths = [[10, 13, 9], [12, 11, 8], [23, 20, 18], [31, 30, 29], [17, 15, 22]]
    data = TrainingData(
        sample_ids="abcde",
        harmful=np.array([True, False, True, False, True]),
        encode=lambda sample, prompt: ([1] * lengths[sample][prompt], [], []),
        num_prompts=3,
        audio_bank=jnp.zeros((1, 4)),
        pair_ids="ppqrs",
    )
    config = TrainConfig(epochs=1, batch_size=4, gradient_accumulation=2, twins_together=True)
    draws, steps = Schedule(data, config, AUDIO).epoch(0)
    assert draws.prompts.tolist() == [0, 0, 1, 2, 2] and draws.tails.tolist() == [0] * 5
    found = [[(one.indices.tolist(), one.weights.tolist(), one.length) for one in step] for step in steps]
    assert found == [[([0, 1], [1, 1], 16), ([2, 2], [1, 0], 24)], [([3, 4], [1, 1], 32)]]


def test_the_last_sample_without_a_twin_is_filled_up_by_itself():
    units, counting = units_of_two(np.array([[4, 7]]), np.array([5, 2, 9]))
    assert units.tolist() == [[4, 7], [5, 2], [9, 9]] and counting.tolist() == [[1, 1], [1, 1], [1, 0]]
    units, counting = units_of_two(np.array([[4, 7]]), np.array([], np.int32))
    assert units.tolist() == [[4, 7]] and counting.tolist() == [[1, 1]]


def test_written_prompts_and_tails_are_drawn_too():
    """The samples' order and prompts stay those of a run without them."""
    data, _ = make_data()
    twice = replace(data, encode=lambda sample, prompt: data.encode(sample, prompt % PROMPTS))
    tails = [[[1] * n for n in range(1 + sample % 4)] for sample in range(SAMPLES)]
    schedule = Schedule(twice, replace(CONFIG, text_share=0.3, audio_share=0.2), AUDIO, tails)
    plain = Schedule(data, CONFIG, AUDIO)
    prompts, drawn = (
        np.array(x) for x in zip(*(schedule.epoch(epoch)[0] for epoch in range(200)), strict=True)
    )
    alone, written = prompts == 2 * PROMPTS, (PROMPTS <= prompts) & (prompts < 2 * PROMPTS)
    assert 0.27 < written.mean() < 0.33 and 0.17 < alone.mean() < 0.23 and prompts.max() == 2 * PROMPTS
    as_before = [plain.epoch(epoch)[0].prompts for epoch in range(200)]
    np.testing.assert_array_equal(np.where(alone, as_before, prompts % PROMPTS), as_before)
    for sample in range(SAMPLES):
        assert set(drawn[:, sample]) == set(range(1 + sample % 4))
    draws, steps = schedule.epoch(3)
    for (selection,) in steps:
        rows = schedule.rows(selection, draws, make_data()[1])
        wanted = [
            [*twice.encode(i, draws.prompts[i])[0], *tails[i][draws.tails[i]]] for i in selection.indices
        ]
        assert [
            ids[:n].tolist() for ids, n in zip(rows.batch.input_ids, rows.batch.lengths, strict=True)
        ] == wanted


@pytest.mark.parametrize("written, heard, first", [(0.0, 0.0, PROMPTS), (0.3, 0.2, 2 * PROMPTS)])
def test_kept_written_prompts_are_drawn_half_bare_and_half_announced(written, heard, first):
    """What else a run draws is as without them."""
    data, _ = make_data()
    whole = replace(data, encode=lambda sample, prompt: data.encode(sample, prompt % PROMPTS))
    shares = replace(CONFIG, text_share=written, audio_share=heard)
    schedule = Schedule(whole, replace(shares, kept_text_share=0.4), AUDIO)
    drawn, others = (
        np.array([one.epoch(epoch)[0].prompts for epoch in range(200)])
        for one in (schedule, Schedule(whole, shares, AUDIO))
    )
    bare, announced = drawn == first, drawn == first + 1
    assert 0.18 < bare.mean() < 0.22 and 0.18 < announced.mean() < 0.22
    assert drawn.max() == (first + 2 if heard else first + 1) == schedule.lengths.shape[1] - 1
    alone = drawn == first + 2
    as_before = np.where(alone, 2 * PROMPTS, drawn)[~bare & ~announced]
    np.testing.assert_array_equal(as_before, others[~bare & ~announced])


def test_kept_tasks_are_drawn_in_equal_parts_behind_kept_texts():
    """What else a run draws is as without them."""
    data, _ = make_data()
    whole = replace(data, encode=lambda sample, prompt: data.encode(sample, prompt % PROMPTS))
    shares = replace(CONFIG, audio_share=0.2, kept_text_share=0.1)
    schedule = Schedule(whole, replace(shares, kept_task_share=0.4), AUDIO)
    drawn, others = (
        np.array([one.epoch(epoch)[0].prompts for epoch in range(400)])
        for one in (schedule, Schedule(whole, shares, AUDIO))
    )
    first, last = PROMPTS + len(KEPT_TEXTS), PROMPTS + len(KEPT_TEXTS) + len(KEPT_TASKS)
    for place in range(first, last):
        assert 0.03 < (drawn == place).mean() < 0.07
    assert drawn.max() == last == schedule.lengths.shape[1] - 1 and 0.18 < (drawn == last).mean() < 0.22
    tasks = (drawn >= first) & (drawn < last)
    as_before = np.where(drawn == last, first, drawn)
    np.testing.assert_array_equal(as_before[~tasks], others[~tasks])


def test_a_compiled_step_serves_another_strategy_of_its_kind(folder, whole, tmp_path):
    """The second run's adapters are those of a run of its own."""
    steps, (data, strategy) = {}, make_data()
    train_on(data, RRS(strategy.targets + 1), make_model(folder), tmp_path / "first", steps=steps)
    (step,) = steps.values()
    compiled = step.compilations()
    adapters = train_on(data, strategy, make_model(folder), tmp_path / "second", steps=steps)
    assert list(steps.values()) == [step] and step.compilations() == compiled
    for name, array in named_leaves(adapters).items():
        np.testing.assert_array_equal(array, whole[1][name])
    train_on(data, RRS(strategy.targets, "mean"), make_model(folder), tmp_path / "third", steps=steps)
    assert len(steps) == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_sample(folder, tmp_path):
    data, strategy = make_data()
    strategy.targets[4] = np.inf
    model = make_model(folder)
    with pytest.raises(UserError, match=r"loss of step [123] is not finite, with the samples sample-4;"):
        train_on(data, strategy, model, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest() is None


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_sentence(tmp_path, capfd, caplog):
    """A limit on the size of files stands for it. Nothing else is told, by no thread."""
    array = jnp.asarray(np.random.default_rng(0).normal(size=(256, 400)), "float32")
    state = TrainState({"a": array}, {}, jnp.int32(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError, match="checkpoints: writing a checkpoint failed .*; free space"):
        try:
            with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
                checkpoints.save(state, Position(1, 0, 1, 0, 1.0, "settings"), 1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_optimiser_follows_adamw_and_its_schedule():
    """Loshchilov & Hutter 2019 written out in NumPy: warm-up of two steps, then linear decay to zero at step
    6."""
    config = OptimiserConfig(
        learning_rate=0.1, schedule="linear", warmup_steps=2, weight_decay=0.01, clip_norm=1.0
    )
    tx = make_optimiser(config, total_steps=6)
    rng = np.random.default_rng(0)
    parameter, m, v = rng.normal(size=5), np.zeros(5), np.zeros(5)
    tree = {"base": np.ones(3, np.float32), "lora": parameter.astype(np.float32)}
    state = tx.init(tree)
    assert sum(x.size for x in jax.tree.leaves(state)) < 13  # two moments of five numbers and counters
    rates = [0.0, 0.05, 0.1, 0.075, 0.05, 0.025]
    np.testing.assert_allclose(learning_rates(config, total_steps=6), rates, atol=1e-8)
    constant = OptimiserConfig(learning_rate=0.1)
    np.testing.assert_allclose(learning_rates(constant, total_steps=3), [0.1] * 3)
    for t, rate in enumerate(rates, start=1):
        gradient = rng.normal(size=5) * (10 if t % 2 else 0.1)
        updates, state = tx.update({"base": None, "lora": gradient.astype(np.float32)}, state, tree)
        tree["lora"] = tree["lora"] + np.asarray(updates["lora"])
        gradient = gradient / max(np.linalg.norm(gradient), 1.0)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.01 * parameter
        parameter = parameter - rate * step
        np.testing.assert_allclose(tree["lora"], parameter, rtol=1e-4, atol=1e-6)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2]
        + bytes([path.read_bytes()[path.stat().st_size // 2] ^ 4])
        + path.read_bytes()[path.stat().st_size // 2 + 1 :]
    ),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("what", ["the largest file", "metrics/metrics", "position/metadata", "sums.json"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_goes_on(folder, whole, tmp_path, capsys, kind, what):
    run_dir = tmp_path / "run"
    shutil.copytree(whole[0], run_dir)
    checkpoint = run_dir / "checkpoints" / "12"
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size) if "largest" in what else checkpoint / what
    DAMAGE[kind](file)
    adapters = run(folder, run_dir)
    told = capsys.readouterr().err
    if (kind, what) == ("deleted", "sums.json"):  # as an earlier version's checkpoint, and whole
        assert "is removed" not in told
    else:
        assert f"{file} is" in told and "the training goes on without it" in told
    for name, array in whole[1].items():
        np.testing.assert_array_equal(adapters[name], array)
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, 13))
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} >= {"10", "12"}


@pytest.mark.parametrize("name", ["state", "position", "metrics"])
def test_a_checkpoint_of_an_earlier_version_that_cannot_be_restored_is_passed_over(
    folder, whole, tmp_path, capsys, name
):
    """It has no sums."""
    run_dir = tmp_path / "run"
    shutil.copytree(whole[0], run_dir)
    checkpoint = run_dir / "checkpoints" / "12"
    (checkpoint / "sums.json").unlink()
    for file in (checkpoint / name).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    adapters = run(folder, run_dir)
    assert f"{checkpoint}" in (told := capsys.readouterr().err) and "goes on without it" in told
    for name, array in whole[1].items():
        np.testing.assert_array_equal(adapters[name], array)


def test_a_checkpoint_on_another_model_or_other_clips_is_refused(folder, tmp_path):
    data, strategy = make_data()
    train_on(replace(data, digest="one"), strategy, make_model(folder), tmp_path)
    with pytest.raises(UserError, match="another content of the model folder or the training clips"):
        train_on(replace(data, digest="other"), strategy, make_model(folder), tmp_path)
    train_on(data, strategy, make_model(folder), tmp_path)  # where nobody asks
