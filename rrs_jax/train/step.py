"""One optimiser step as one jitted function over a mesh."""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rrs_jax import equations
from rrs_jax.config.training import OptimiserConfig
from rrs_jax.distributed.mesh import (
    batch_sharding,
    parameter_sharding,
    put,
    replicated,
    rows_multiple,
    traced_on,
)
from rrs_jax.inputs.batching import pad_rows
from rrs_jax.models.ahead_of_time import Programs
from rrs_jax.models.batch import Batch
from rrs_jax.models.lora import LoRAParam
from rrs_jax.models.stack import compiler_options
from rrs_jax.strategies import Strategy
from rrs_jax.train.optimiser import averaged_steps, make_optimiser


@flax.struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      lora: the adapters, float32.
      opt_state: of `optax.masked`, moments for the adapters alone.
      step: int32, number of updates made.
      mean: the adapters' mean over the steps that `OptimiserConfig.average` names, before these the adapters;
        None where it names none.
    """

    lora: nnx.State
    opt_state: optax.OptState
    step: jax.Array
    mean: nnx.State | None = None

    @property
    def result(self) -> nnx.State:
        """The adapters that training gives."""
        return self.lora if self.mean is None else self.mean


@flax.struct.dataclass
class Rows:
    """A micro-batch of B rows.

    Attributes:
      batch: the prompts.
      examples: the strategy's arrays, (B, ...).
      harmful: bool (B,).
      weights: float32 (B,), 1 for a sample and 0 for filling.
    """

    batch: Batch
    examples: dict[str, jax.Array]
    harmful: jax.Array
    weights: jax.Array


@flax.struct.dataclass
class Sums:
    """Weighted sums over rows, harmful and benign apart: losses (2,), weights (2,), and their gradients; and
    the number of micro-batches, int32."""

    losses: jax.Array
    weights: jax.Array
    gradients: nnx.State
    parts: jax.Array


@flax.struct.dataclass
class StepMetrics:
    """Scalars on the device. `losses` and `weights` (2,) are sums over harmful and benign rows; `finite` says
    whether loss and gradient were, without which nothing was updated."""

    loss: jax.Array
    losses: jax.Array
    weights: jax.Array
    penalty: jax.Array
    grad_norm: jax.Array
    finite: jax.Array


def shardings(tree, mesh: Mesh):
    """The sharding of every array, by the partition rules; a moment's path ends as its parameter's."""

    def sharding(path, leaf):
        dotted = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        return parameter_sharding(mesh, dotted, leaf.shape)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def abstract_state(model: nnx.Module, config: OptimiserConfig, mesh: Mesh, total_steps: int) -> TrainState:
    """Shapes, dtypes and shardings of a training's state, for a model with adapters; nothing is computed."""
    _, lora, base = nnx.split(model, LoRAParam, ...)
    optimiser = make_optimiser(config, total_steps)
    moments = jax.eval_shape(lambda lora: optimiser.init({"base": base, "lora": lora}), lora)
    mean = lora if averaged_steps(config, total_steps) else None
    state = TrainState(lora, moments, jax.ShapeDtypeStruct((), jnp.int32), mean)
    places = shardings(state, mesh)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, places
    )


class TrainStep:
    """Gradients, accumulation and update; compiled once for each shape of a micro-batch.

    A step of one micro-batch is one jit. A step of several adds up the gradient sums of each in float32 and
    divides by the number of rows at the end, so that it equals one large batch although the micro-batches
    have different lengths and some rows are filling.
    """

    def __init__(
        self,
        model: nnx.Module,
        strategy: Strategy,
        config: OptimiserConfig,
        mesh: Mesh,
        total_steps: int,
        seed: int = 0,
    ):
        """seed: of the adapters' dropout, which is drawn anew in each step and micro-batch."""
        self.config, self.mesh, self.replicated = config, mesh, replicated(mesh)
        self.averaged = averaged_steps(config, total_steps)
        self.first_averaged = total_steps - max(self.averaged, 1)  # updates made before it
        self.optimiser = make_optimiser(config, total_steps)
        self.renew(model, strategy, config.penalty_weight, seed)
        self._jit(jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh, total_steps)))

    def _jit(self, state: TrainState) -> None:
        """Makes the jitted functions: the step of one micro-batch; of several, the first one's sums, a
        further one's added to them, and the update. state: the shardings of its arrays."""
        mesh, rows, all_of_it = self.mesh, batch_sharding(self.mesh), self.replicated
        base, lora = self._shardings(self.base), self._shardings(self.initial)
        sums = Sums(losses=all_of_it, weights=all_of_it, gradients=lora, parts=all_of_it)
        # Penalty's weight and seed are arguments, so that runs that differ in them share what is compiled.
        inputs = (base, lora if self.config.penalty_space == "lora" else None, all_of_it)
        jit = functools.partial(jax.jit, compiler_options=compiler_options())
        self._step = Programs(
            jit(
                traced_on(mesh, self._fused),
                donate_argnums=0,
                in_shardings=(state, *inputs, all_of_it, all_of_it, rows),
                out_shardings=(state, all_of_it, all_of_it),
            )
        )
        self._first = jit(
            traced_on(mesh, self._sums),
            in_shardings=(state.lora, base, (all_of_it, all_of_it), all_of_it, rows),
            out_shardings=(sums, all_of_it),
        )
        self._next = jit(
            traced_on(mesh, self._add),
            donate_argnums=0,
            in_shardings=(sums, state.lora, base, (all_of_it, all_of_it), all_of_it, rows),
            out_shardings=(sums, all_of_it),
        )
        self._apply = jit(
            self._update,
            donate_argnums=0,
            in_shardings=(state, sums, *inputs),
            out_shardings=(state, all_of_it),
        )

    def renew(self, model: nnx.Module, strategy: Strategy, penalty_weight: float, seed: int) -> None:
        """Takes others; what is compiled stays if structure, shapes and `strategy.static` are the same."""
        self.strategy = strategy
        self.penalty_weight, self.seed = put((np.float32(penalty_weight), np.int32(seed)), self.replicated)
        self.base = None  # lets go of an earlier model's layers before the next ones are set apart
        if self.config.unroll and model.config.text.quantize == "float8" and self.mesh.size == 1:
            model = nnx.merge(*nnx.split(model))
            model.language_model.set_apart()
        self.graphdef, lora, self.base = nnx.split(model, LoRAParam, ...)
        # The jitted functions donate their state, so it must not share buffers with the model's adapters.
        self.initial = jax.tree.map(put, jax.tree.map(jnp.copy, lora), self._shardings(lora))

    def init(self) -> TrainState:
        """The state before the first step."""
        lora = jax.tree.map(jnp.copy, self.initial)
        moments = jax.eval_shape(self._initial_optimiser, lora)
        make = jax.jit(self._initial_optimiser, out_shardings=self._shardings(moments))
        mean = jax.tree.map(jnp.copy, lora) if self.averaged else None
        return TrainState(lora, make(lora), put(np.int32(0), self.replicated), mean)

    def place(self, rows: Rows) -> Rows:
        """Host arrays onto the devices, filled up to what the mesh divides."""
        multiple = rows_multiple(self.mesh)
        weights = np.pad(np.asarray(rows.weights, np.float32), (0, -len(rows.weights) % multiple))
        return put(pad_rows(rows, multiple).replace(weights=weights), batch_sharding(self.mesh))

    def __call__(
        self, state: TrainState, audio_bank: jax.Array, micro_batches: Sequence[Rows]
    ) -> tuple[TrainState, StepMetrics, list[jax.Array]]:
        """The next state (the old one's buffers are gone), metrics, and each micro-batch's row losses
        (B,)."""
        if len(micro_batches) == 1:
            state, metrics, losses = self._step(*self._arguments(state, audio_bank, micro_batches[0]))
            return state, metrics, [losses]
        draw = self.seed, state.step
        sums, losses = self._first(state.lora, self.base, draw, audio_bank, micro_batches[0])
        row_losses = [losses]
        for rows in micro_batches[1:]:
            sums, losses = self._next(sums, state.lora, self.base, draw, audio_bank, rows)
            row_losses.append(losses)
        state, metrics = self._apply(state, sums, self.base, self._penalised_from(), self.penalty_weight)
        return state, metrics, row_losses

    def prepare(self, state: TrainState, audio_bank: jax.Array, micro_batches: Sequence[Rows]) -> bool:
        """Compiles the step of one micro-batch for each of these, side by side; whether it did
        (`Programs.prepare`)."""
        return self._step.prepare([self._arguments(state, audio_bank, rows) for rows in micro_batches])

    def model(self, state: TrainState) -> nnx.Module:
        """The model with the state's adapters; it shares their buffers, which the next step gives away. Its
        layers may be apart (`Decoder.set_apart`)."""
        return nnx.merge(self.graphdef, state.lora, self.base)

    def compilations(self) -> int:
        """Shapes for which the step of one micro-batch was compiled."""
        return self._step.count()

    def lower(self, state: TrainState, audio_bank: jax.Array, rows: Rows):
        """The single-batch step, lowered for these arrays or shapes; `.compile().memory_analysis()` tells its
        memory."""
        return self._step.function.lower(*self._arguments(state, audio_bank, rows))

    def _arguments(self, state: TrainState, audio_bank: jax.Array, rows: Rows) -> tuple:
        return state, self.base, self._penalised_from(), self.penalty_weight, self.seed, audio_bank, rows

    def _penalised_from(self) -> nnx.State | None:
        return self.initial if self.config.penalty_space == "lora" else None

    def _fused(self, state: TrainState, base, initial, penalty_weight, seed, audio_bank, rows: Rows):
        sums, row_losses = self._sums(state.lora, base, (seed, state.step), audio_bank, rows)
        # Else XLA may cut the update over the mesh and gather adapters and moments in place of the gradients.
        gradients = jax.lax.with_sharding_constraint(sums.gradients, self._shardings(sums.gradients))
        sums = sums.replace(gradients=gradients)
        return *self._update(state, sums, base, initial, penalty_weight), row_losses

    def _sums(self, lora, base, draw, audio_bank, rows: Rows, part=0) -> tuple[Sums, jax.Array]:
        """The sums of micro-batch `part`, and its row losses. draw: what its dropout is drawn from, seed and
        step."""
        groups = jnp.stack([rows.harmful, ~rows.harmful]) * rows.weights  # (2, B)
        batch = rows.batch.replace(dropout_key=_dropout_key(*draw, part))

        def total(lora):
            model = nnx.merge(self.graphdef, lora, base)
            model.language_model.unroll = self.config.unroll
            losses = self.strategy.row_losses(
                model, batch, audio_bank, rows.examples, remat=self.config.remat
            )
            return jnp.sum(losses * rows.weights), losses

        gradients, losses = jax.grad(total, has_aux=True)(lora)
        sums = Sums(jnp.sum(groups * losses, axis=1), groups.sum(axis=1), gradients, parts=jnp.int32(1))
        return sums, losses

    def _add(self, sums: Sums, lora, base, draw, audio_bank, rows: Rows) -> tuple[Sums, jax.Array]:
        more, losses = self._sums(lora, base, draw, audio_bank, rows, sums.parts)
        return jax.tree.map(jnp.add, sums, more), losses

    def _update(
        self, state: TrainState, sums: Sums, base, initial, penalty_weight
    ) -> tuple[TrainState, StepMetrics]:
        count = sums.weights.sum()

        def distance(lora):
            if self.config.penalty_space == "lora":
                return equations.adapter_change(lora, initial)
            return equations.weight_change(nnx.merge(self.graphdef, lora, base).lora.pairs())

        moved, pull = jax.value_and_grad(distance)(state.lora)
        # The objective's gradient; of several micro-batches the data term's comes in sums.
        gradients = jax.tree.map(lambda g, p: g / count + penalty_weight * p, sums.gradients, pull)
        loss = equations.objective(sums.losses.sum(), count, moved, penalty_weight)
        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        parameters = {"base": base, "lora": state.lora}
        updates, opt_state = self.optimiser.update(
            {"base": None, "lora": gradients}, state.opt_state, parameters
        )
        lora, mean = optax.apply_updates(state.lora, updates["lora"]), state.mean
        if mean is not None:  # the first one of those averaged replaces it, as all before do
            mean = optax.incremental_update(
                lora, mean, 1 / jnp.maximum(state.step - self.first_averaged + 1, 1)
            )
        updated = TrainState(lora, opt_state, state.step + 1, mean)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return state, StepMetrics(loss, sums.losses, sums.weights, moved, grad_norm, finite)

    def _initial_optimiser(self, lora) -> optax.OptState:
        return self.optimiser.init({"base": self.base, "lora": lora})

    def _shardings(self, tree):
        return shardings(tree, self.mesh)


def _dropout_key(seed: jax.Array, step: jax.Array, part: jax.Array | int) -> jax.Array:
    """Random key of a micro-batch's dropout: a run that goes on at a step draws what it would have drawn."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), part)
