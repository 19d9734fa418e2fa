"""The scan over a stack of frozen layers, and its backward pass.

JAX's own derivative of a scan would serve, if XLA did not copy a layer's weights out of their stack in every
pass: on a GPU a matrix product reads them where they lie only if the place of the cut is the loop's own
counter. So the backward pass is a loop of its own, which counts down and cuts the weights out anew.

Example: three layers x ← sin(x @ w) with the weights w stacked, (3, D, D).

    forward    i = 0, 1, 2    w = stack[i]; the layer's derivative reads w and c = cos(x @ w); c is saved
    saved                     c of all layers, stacked by the scan; no w is among them
    backward   i = 2, 1, 0    w = stack[i], c = saved[i]; dx ← (dx · c) @ wᵀ

`Pullback` is how the forward pass knows which arrays of a derivative are such weights.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rrs_jax.distributed.mesh import gathered, rows_over

# What the layers name with `jax.ad_checkpoint.checkpoint_name`; everything else of a layer is element by
# element, or thin, between these.
SAVED_NAMES = ("queries", "keys", "values", "attended", "middle", "gate", "up", "thin")
# Gate and up are nearly as large as all others together, or larger.
GATE_NAMES = tuple(name for name in SAVED_NAMES if name != "up")
LEAN_NAMES = tuple(name for name in GATE_NAMES if name != "gate")


@dataclasses.dataclass(frozen=True)
class LayerScan:
    """Which layers of a stack are run, and how.

    Attributes:
      step: (x, layer, adapter, shared) to (x, out), one layer; it reads no array but its arguments.
      start, stop: the layers `start` to `stop - 1`.
      remat: what is kept for the backward pass, see `rematerialise`.
      unroll: compile each layer by itself, which takes several times as long, and copies nothing that is
        kept.
    """

    step: Callable
    start: int
    stop: int
    remat: str = "none"
    unroll: bool = False

    def inputs(self, index, frozen, adapters, shared) -> tuple:
        """Arguments of the step of layer `index` behind x. The adapters' stacks begin at layer `start`."""
        return frozen_layer(frozen, index), layer_at(adapters, index - self.start), shared


@jax.tree_util.register_static
@dataclasses.dataclass(eq=False)
class Pullback:
    """The derivative of a layer without its arrays: how saved and found ones make it up again.

    Example: the derivative of x ← sin(x @ w) holds [w, c] with c = cos(x @ w), and the layer's inputs are
    [w]. Then `sources` is [0, None]: the first array is input 0, the second, c, is saved.

    Attributes:
      structure: of the function that `jax.vjp` returns, which is a tree of arrays.
      sources: for each of its arrays the place among the layer's inputs, or None for a saved one.
    """

    structure: jax.tree_util.PyTreeDef
    sources: list[int | None]

    @classmethod
    def taken_apart(cls, pull: Callable, inputs: tuple) -> tuple["Pullback", list[jax.Array]]:
        """The derivative's form, and those of its arrays that are none of `inputs`.

        While JAX traces, an array that a derivative reads as it went in is the same Python object, so that
        `id` tells it.
        """
        places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(inputs))}
        leaves, structure = jax.tree.flatten(pull)
        saved = [leaf for leaf in leaves if id(leaf) not in places]
        return cls(structure, [places.get(id(leaf)) for leaf in leaves]), saved

    def put_together(self, saved: list[jax.Array], inputs: tuple) -> Callable:
        """The derivative of a layer with these saved arrays and these inputs."""
        found, saved = jax.tree.leaves(inputs), iter(saved)
        leaves = [next(saved) if place is None else found[place] for place in self.sources]
        return jax.tree.unflatten(self.structure, leaves)


def scan_layers(scan: LayerScan, x: jax.Array, frozen, adapters, shared) -> tuple:
    """Runs the layers; returns x behind the last one, and the outs stacked over the layers (None for none).

    x and the adapters are differentiated, for `frozen` and `shared` there is no derivative.

    Args:
      frozen: stacks over all layers, or with `unroll` a tuple of layers (`layer_at`).
      adapters: stacks over the layers from `scan.start` on, or None.
      shared: arrays that all layers read.
    """
    return (x, None) if scan.start == scan.stop else _scan(scan, rows_over(x), adapters, frozen, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(scan: LayerScan, x, adapters, frozen, shared):
    def body(x, index, _):
        return scan.step(x, *scan.inputs(index, frozen, adapters, shared))

    x, out = _loop(body, x, range(scan.start, scan.stop), scan.unroll)
    return x, _stacked(out, scan.unroll)


def _forward(scan: LayerScan, x, adapters, frozen, shared):
    step, pullbacks = rematerialise(scan.step, scan.remat), []

    def body(x, index, _):
        layer, adapter, _ = inputs = scan.inputs(index, frozen, adapters, shared)
        (x, out), pull = jax.vjp(lambda x, adapter: step(x, layer, adapter, shared), x, adapter)
        pullback, saved = Pullback.taken_apart(pull, inputs)
        pullbacks.append(pullback)
        # Without the barrier XLA makes a matrix product twice, once for its readers and once into the stack
        # of saved ones.
        return x, (out, saved if scan.unroll else jax.lax.optimization_barrier(saved))

    x, values = _loop(body, x, range(scan.start, scan.stop), scan.unroll)
    out, saved = map(list, zip(*values, strict=True)) if scan.unroll else values
    # All layers are of one form, so the last one's pullback serves all.
    return (x, _stacked(out, scan.unroll)), (saved, adapters, frozen, shared, pullbacks[-1])


def _backward(scan: LayerScan, residuals, cotangents):
    saved, adapters, frozen, shared, pullback = residuals
    dx, dout = cotangents
    dx = rows_over(dx)

    def body(dx, index, values):
        saved, dout = values
        pull = pullback.put_together(saved, scan.inputs(index, frozen, adapters, shared))
        return pull((dx, dout))

    values = saved, dout
    if scan.unroll:
        values = [(one, jax.tree.map(lambda leaf, i=i: leaf[i], dout)) for i, one in enumerate(saved)]
    dx, gradients = _loop(body, dx, range(scan.start, scan.stop), scan.unroll, values, reverse=True)

    def whole(gradient, stack):  # zero for the layers that this scan left out
        return jnp.pad(gradient, [(0, stack.shape[0] - gradient.shape[0]), *[(0, 0)] * (stack.ndim - 1)])

    return dx, jax.tree.map(whole, _stacked(gradients, scan.unroll), adapters), None, None


def _loop(body, carry, indices: range, unroll: bool, values=None, *, reverse: bool = False):
    """Runs `body(carry, index, value) -> (carry, out)` for each index; returns the last carry and the outs in
    the indices' order, as a list with `unroll` and else stacked."""
    if unroll:
        outs = []
        for place, index in reversed([*enumerate(indices)]) if reverse else enumerate(indices):
            carry, out = body(carry, index, None if values is None else values[place])
            outs.append(out)
        return carry, outs[::-1] if reverse else outs

    def counted(carry, value):
        carry, index = carry
        carry, out = body(carry, index, value)
        return (carry, index + (-1 if reverse else 1)), out

    first = jnp.int32(indices[-1] if reverse else indices[0])
    (carry, _), outs = jax.lax.scan(counted, (carry, first), values, length=len(indices), reverse=reverse)
    return carry, outs


def _stacked(outs, unroll: bool):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs) if unroll else outs


_scan.defvjp(_forward, _backward)


def frozen_layer(stacks, index: jax.Array | int):
    """One layer's frozen weights, as `layer_at` cuts them out, gathered where the mesh cuts them over
    `fsdp`: the forward and the backward pass each gather a layer when they come to it."""
    return gathered(layer_at(stacks, index))


def layer_at(stacks, index: jax.Array | int):
    """One layer out of stacks, cut by a counter that is not negative, or out of a tuple of layers; of a dict,
    each value's."""
    if isinstance(stacks, tuple):
        return stacks[index]
    if isinstance(stacks, dict):
        return {name: layer_at(stack, index) for name, stack in stacks.items()}

    def cut(leaf):
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False, allow_negative_indices=False)

    return jax.tree.map(cut, stacks)


def rematerialise(step, remat: str):
    """`step` with a rule for what the forward pass keeps for the backward pass, beside what that finds again
    in the stacks.

    `none`: every intermediate that a derivative reads; `dots`: the layer's input, the results of its matrix
    products and of its attention; `gate`: of these all but up, one product of seven; `lean`: all but gate and
    up; `full`: the layer's input alone.
    """
    if remat == "none":
        return step
    policy = {
        "dots": _keep(SAVED_NAMES),
        "gate": _keep(GATE_NAMES),
        "lean": _keep(LEAN_NAMES),
        "full": jax.checkpoint_policies.nothing_saveable,
    }[remat]
    return jax.checkpoint(step, policy=policy, prevent_cse=False)


@functools.cache
def _keep(names: tuple[str, ...]):
    """A checkpoint policy that keeps these names, and the output that attention on a GPU has for its own
    backward pass, which has no name."""
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def keep(primitive, *avals, **parameters):
        return primitive.name.startswith("dot_product_attention_fwd") or named(
            primitive, *avals, **parameters
        )

    return keep


def compiler_options() -> dict | None:
    """XLA options for what is jitted around the scan; None without a GPU, or with a jax before 0.11.

    Matrix products go to cuBLAS, each by itself, which then reads a layer's weights where they lie in the
    stack of layers. XLA's own kernels, and products that XLA joins, are handed a copy of the layer, which
    makes three passes over the weights of one. And stacks of kept values are not filled with zeros before
    they are filled.
    """
    if jax.default_backend() != "gpu" or jax.__version_info__ < (0, 11):
        return None
    options = {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_dynamic_slice_fusion": True,
        "xla_gpu_dot_merger_threshold_mb": 0,
    }
    if jax.__version_info__ >= (0, 11, 2):
        options["xla_gpu_enable_dus_accumulator_zero_init_elimination"] = True
    return options
