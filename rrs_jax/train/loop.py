"""Epochs over the samples: what is dispatched, what is written down."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rrs_jax.config.training import OptimiserConfig
from rrs_jax.distributed.mesh import fetch, mesh_of, put
from rrs_jax.errors import UserError
from rrs_jax.frozen.prefix_states import PrefixStates
from rrs_jax.inputs.batching import Selection
from rrs_jax.progress import Progress
from rrs_jax.strategies import Strategy
from rrs_jax.train.batches import Draws, Schedule, TrainingData
from rrs_jax.train.checkpoints import Checkpoints, Position
from rrs_jax.train.metrics import TRAIN, MetricsLog
from rrs_jax.train.optimiser import learning_rates
from rrs_jax.train.resumption import beginning, latest
from rrs_jax.train.step import StepMetrics, TrainState, TrainStep

OnEpoch = Callable[[int, nnx.State], None]


def train(
    model: nnx.Module,
    strategy: Strategy,
    schedule: Schedule,
    folder: Path,
    *,
    steps: dict | None = None,
    prefix_states: Callable[[], PrefixStates | None] = lambda: None,
    remat: str | None = None,
    on_epoch: OnEpoch | None = None,
) -> nnx.State:
    """Trains adapters and returns them, a state of `LoRAParam`; goes on where `folder` shows that a run
    stopped.

    Writes `folder/checkpoints`, and the figures of steps where `log_to` says. Raises UserError where loss or
    gradient are not finite, naming the samples, and where the folder's checkpoints are of other settings.

    Args:
      model: with its adapters at their start, also when a run goes on: penalty_space "lora" counts from
        them. It stays as it is, on its own mesh.
      schedule: samples, prompts and padding of every step, and the training settings.
      steps: keeps compiled steps for later calls.
      prefix_states: makes the lower layers' states that steps start from, called where there are steps to
        come.
      remat: in place of the settings' own.
      on_epoch: gets the number of epochs done and the adapters, before that epoch's checkpoint is written; a
        run that goes on has called it for every epoch done.
    """
    config, data = schedule.config, schedule.data
    if config.gradient_accumulation < 1 or config.batch_size % config.gradient_accumulation:
        raise UserError(
            f"train.gradient_accumulation: {config.gradient_accumulation} does not divide train.batch_size "
            f"{config.batch_size}; choose a divisor."
        )
    optimiser = dataclasses.replace(config.optimiser, remat=remat or config.optimiser.remat)
    total_steps = config.total_steps(len(data.sample_ids))
    kept = {} if steps is None else steps
    step = _make_step(model, strategy, optimiser, total_steps, config.seed, kept)
    with Checkpoints(folder / "checkpoints", config.keep_checkpoints) as checkpoints:
        start, fresh = step.init(), beginning(config, data.sample_ids, data.harmful, data.digest)
        state, position = latest(checkpoints, start, fresh) or (start, fresh)
        if position.step < total_steps:
            schedule.prefix_states = prefix_states()
            with MetricsLog(folder, config.log_to, position.step) as log:
                loop = Loop(step, schedule, data, log, checkpoints, on_epoch)
                state = loop.until(total_steps, state, position)
            schedule.prefix_states = None
    return jax.tree.map(lambda array: array.copy(), state.result)


def _make_step(
    model: nnx.Module, strategy: Strategy, config: OptimiserConfig, total_steps: int, seed: int, steps: dict
) -> TrainStep:
    """One out of `steps` where what is compiled would be the same."""
    mesh = mesh_of(model)
    scheduled = total_steps if config.schedule != "constant" or config.average else None
    compiled = dataclasses.replace(config, penalty_weight=1.0)
    key = (nnx.split(model)[0], type(strategy), strategy.static, compiled, mesh, scheduled)
    if key in steps:
        steps[key].renew(model, strategy, config.penalty_weight, seed)
    else:
        steps[key] = TrainStep(model, strategy, config, mesh, total_steps, seed)
    return steps[key]


@dataclasses.dataclass
class Dispatched:
    """A step that the devices may still be computing."""

    step: int
    epoch: int
    selections: list[Selection]
    metrics: StepMetrics
    row_losses: list[jax.Array]


class Loop:
    """The loop proper. A step's metrics are read after the next step is dispatched, so that the devices never
    wait for the host and never have more than two steps before them."""

    def __init__(
        self,
        step: TrainStep,
        schedule: Schedule,
        data: TrainingData,
        log: MetricsLog,
        checkpoints: Checkpoints,
        on_epoch: OnEpoch | None = None,
    ):
        self.step, self.schedule, self.data, self.log, self.checkpoints = (
            step,
            schedule,
            data,
            log,
            checkpoints,
        )
        self.on_epoch = on_epoch
        self.steps_per_epoch = schedule.config.steps_per_epoch(len(data.sample_ids))
        self.compiled: set[tuple[int, ...]] = set()
        self.waiting: Dispatched | None = None
        self.clock = time.perf_counter()  # since when the devices work on the step that is read next
        self.epoch_loss = 0.0

    def until(self, total_steps: int, state: TrainState, position: Position) -> TrainState:
        audio_bank = put(self.data.audio_bank, self.step.replicated)
        self._compile(state, audio_bank, position, total_steps)
        self.clock = time.perf_counter()
        self.epoch_loss = position.epoch_loss
        self.rates = learning_rates(self.schedule.config.optimiser, total_steps)
        with Progress(total_steps - position.step, "training", unit="steps") as self.progress:
            for epoch in range(position.epoch, -(-total_steps // self.steps_per_epoch)):
                draws, batches = self.schedule.epoch(epoch)
                first = position.batch if epoch == position.epoch else 0
                for batch in range(first, self.steps_per_epoch):
                    state = self._dispatch(state, audio_bank, epoch, batch, draws, batches[batch])
                    self._save_where_due(state, epoch, batch, position)
        return state

    def _compile(
        self, state: TrainState, audio_bank: jax.Array, position: Position, total_steps: int
    ) -> None:
        """The steps of all lengths to come, side by side. Micro-batches that are added up compile as they
        come."""
        if self.schedule.config.gradient_accumulation > 1:
            return
        firsts = {}
        for epoch in range(position.epoch, -(-total_steps // self.steps_per_epoch)):
            draws, batches = self.schedule.epoch(epoch)
            for (selection,) in batches:
                firsts.setdefault(selection.length, (selection, draws))
        rows = [
            self.step.place(self.schedule.rows(selection, draws, self.step.strategy))
            for selection, draws in firsts.values()
        ]
        if self.step.prepare(state, audio_bank, rows):
            self.compiled |= {(False, False, length) for length in firsts}

    def _dispatch(self, state, audio_bank, epoch: int, batch: int, draws: Draws, selections) -> TrainState:
        rows = [
            self.step.place(self.schedule.rows(selection, draws, self.step.strategy))
            for selection in selections
        ]
        shapes = {
            (len(selections) > 1, place > 0, selection.length) for place, selection in enumerate(selections)
        }
        compiling = not shapes <= self.compiled
        self.compiled |= shapes
        if compiling:
            self._record()
        state, metrics, row_losses = self.step(state, audio_bank, rows)
        if compiling:  # which is nobody's samples per second
            self.clock = time.perf_counter()
        self._record()
        number = epoch * self.steps_per_epoch + batch + 1
        self.waiting = Dispatched(number, epoch, selections, metrics, row_losses)
        return state

    def _record(self) -> None:
        """Waits for the step that is not yet read and writes its line. Raises UserError where it was not
        finite."""
        if self.waiting is None:
            return
        done, self.waiting = self.waiting, None
        metrics = jax.device_get(done.metrics)
        started, self.clock = self.clock, time.perf_counter()
        if not metrics.finite:
            raise UserError(self._not_finite(done, metrics))
        loss, (harmful, benign) = float(metrics.loss), zip(metrics.losses, metrics.weights, strict=True)
        self.epoch_loss += loss
        self.log.write(
            TRAIN,
            done.step,
            epoch=done.epoch + 1,
            loss=loss,
            loss_harmful=_mean(*harmful),
            loss_benign=_mean(*benign),
            penalty=float(metrics.penalty),
            grad_norm=float(metrics.grad_norm),
            samples_per_second=round(float(metrics.weights.sum()) / (self.clock - started), 3),
            learning_rate=float(self.rates[done.step - 1]),
        )
        self.progress.update(1, loss=f"{loss:.4g}")

    def _not_finite(self, done: Dispatched, metrics: StepMetrics) -> str:
        samples = np.concatenate([selection.indices for selection in done.selections])
        losses = [
            fetch(part)[: len(s.indices)] for part, s in zip(done.row_losses, done.selections, strict=True)
        ]
        bad = ~np.isfinite(np.concatenate(losses))
        names = ", ".join(sorted({self.data.sample_ids[i] for i in (samples[bad] if bad.any() else samples)}))
        what = "gradient" if np.isfinite(metrics.loss) else "loss"
        return (
            f"training: the {what} of step {done.step} is not finite, with the samples {names}; it was not"
            " applied. Check those clips, lower train.learning_rate, or set model.dtype to float32."
        )

    def _save_where_due(self, state: TrainState, epoch: int, batch: int, position: Position) -> None:
        number, epoch_ends = epoch * self.steps_per_epoch + batch + 1, batch + 1 == self.steps_per_epoch
        if not epoch_ends and number % self.schedule.config.checkpoint_every_steps:
            return
        self._record()  # what a checkpoint holds is also written down, and was finite
        mean_loss = self.epoch_loss / (batch + 1)
        if epoch_ends:
            epoch, batch, self.epoch_loss = epoch + 1, -1, 0.0
            if self.on_epoch is not None:
                self.on_epoch(epoch, state.result)
        where = dataclasses.replace(
            position, step=number, epoch=epoch, batch=batch + 1, epoch_loss=self.epoch_loss
        )
        self.checkpoints.save(state, where, mean_loss)
        self.clock = time.perf_counter()


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count else None
