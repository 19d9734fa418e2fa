"""The scan over a stack of frozen layers, and its backward pass.

JAX's own derivative of a scan would serve, if XLA did not copy a layer's weights out of their stack in every
pass: on a GPU a matrix product reads them where they lie only if the place of the cut is the loop's own
counter. So the backward pass is a loop of its own, which counts down and cuts the weights out anew.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from rrs_jax.distributed.mesh import gathered, rows_over

# What the layers name with `jax.ad_checkpoint.checkpoint_name`; everything else of a layer is element by
# element, or thin, between these.
SAVED_NAMES = ("queries", "keys", "values", "attended", "middle", "gate", "up", "thin")
# Gate and up are nearly as large as all others together.
LEAN_NAMES = tuple(name for name in SAVED_NAMES if name not in ("gate", "up"))


@jax.tree_util.register_static
@dataclasses.dataclass(eq=False)
class Pullback:
    """How a layer's saved values and what the backward pass finds elsewhere make up its derivative.

    Attributes:
      structure: of the function that `jax.vjp` returns, which is a tree of arrays.
      places: for each of its arrays the place among the layer's inputs, or None for a saved value.
    """

    structure: jax.tree_util.PyTreeDef
    places: list[int | None]


def scan_layers(
    step, x, shared, frozen, adapters, start: int, stop: int, *, remat: str = "none", unroll: bool = False
):
    """Runs `step(x, layer, adapter, shared) -> (x, out)` over layers `start` to `stop`; returns x and the
    stacked outs.

    frozen: stacks over all layers, or with `unroll` a tuple of layers. adapters: stacks over the layers from
    `start` on, or None. shared: arrays that all layers read. x and the adapters are differentiated, for
    `frozen` and `shared` there is no derivative. `step` reads no array but its arguments. remat: what is kept
    for the backward pass, see `rematerialise`. unroll: compile each layer by itself, which takes several
    times as long, and copies nothing that is kept.
    """
    if start == stop:
        return x, None
    x = rows_over(x)
    return _scan(step, remat, unroll, start, stop, x, adapters, frozen, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def _scan(step, remat, unroll, start, stop, x, adapters, frozen, shared):
    def body(x, index, _):
        return step(x, frozen_layer(frozen, index), layer_at(adapters, index - start), shared)

    x, out = _loop(body, x, range(start, stop), unroll)
    return x, _stacked(out, unroll)


def _forward(step, remat, unroll, start, stop, x, adapters, frozen, shared):
    pullbacks = []

    def body(x, index, _):
        layer, adapter = frozen_layer(frozen, index), layer_at(adapters, index - start)
        run = rematerialise(step, remat)
        (x, out), pull = jax.vjp(lambda x, adapter: run(x, layer, adapter, shared), x, adapter)
        places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves((layer, adapter, shared)))}
        leaves, structure = jax.tree.flatten(pull)
        pullbacks.append(Pullback(structure, [places.get(id(leaf)) for leaf in leaves]))
        saved = [leaf for leaf in leaves if id(leaf) not in places]
        # Without the barrier XLA makes a matrix product twice, once for its readers and once into the stack
        # of saved ones.
        return x, (out, saved if unroll else jax.lax.optimization_barrier(saved))

    x, values = _loop(body, x, range(start, stop), unroll)
    if unroll:
        out, saved = [out for out, _ in values], [saved for _, saved in values]
    else:
        out, saved = values
    return (x, _stacked(out, unroll)), (saved, adapters, frozen, shared, pullbacks[-1])


def _backward(step, remat, unroll, start, stop, residuals, cotangents):
    saved, adapters, frozen, shared, pullback = residuals
    dx, dout = cotangents
    dx = rows_over(dx)

    def body(dx, index, values):
        saved, dout = values
        found = jax.tree.leaves((frozen_layer(frozen, index), layer_at(adapters, index - start), shared))
        saved = iter(saved)
        leaves = [next(saved) if place is None else found[place] for place in pullback.places]
        return jax.tree.unflatten(pullback.structure, leaves)((dx, dout))

    if unroll:
        values = [(one, jax.tree.map(lambda leaf, i=i: leaf[i], dout)) for i, one in enumerate(saved)]
    else:
        values = (saved, dout)
    dx, gradients = _loop(body, dx, range(start, stop), unroll, values, reverse=True)

    def whole(gradient, stack):  # zero for the layers that this scan left out
        return jnp.pad(gradient, [(0, stack.shape[0] - gradient.shape[0]), *[(0, 0)] * (stack.ndim - 1)])

    return dx, jax.tree.map(whole, _stacked(gradients, unroll), adapters), None, None


def _loop(body, carry, indices: range, unroll: bool, values=None, *, reverse: bool = False):
    """`body(carry, index, value) -> (carry, out)` for each index; the outs in the indices' order, stacked by
    a scan."""
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
    """One layer out of stacks, by a counter that is not negative; out of a tuple of layers by its place."""
    if isinstance(stacks, tuple):
        return stacks[index]

    def cut(leaf):
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False, allow_negative_indices=False)

    return jax.tree.map(cut, stacks)


def rematerialise(step, remat: str):
    """What the forward pass keeps for the backward pass, beside what it finds again in the stacks.

    `none`: every intermediate that a derivative reads; `dots`: the layer's input, the results of its matrix
    products and of its attention; `lean`: of these all but gate and up, two products of seven; `full`: the
    layer's input alone.
    """
    if remat == "none":
        return step
    policy = {
        "dots": _keep(SAVED_NAMES),
        "lean": _keep(LEAN_NAMES),
        "full": jax.checkpoint_policies.nothing_saveable,
    }[remat]
    return jax.checkpoint(step, policy=policy, prevent_cse=False)


@functools.cache
def _keep(names: tuple[str, ...]):
    """A policy that keeps these; attention on a GPU has an output of its own for the backward pass, without a
    name."""
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def keep(primitive, *avals, **parameters):
        return primitive.name.startswith("dot_product_attention_fwd") or named(
            primitive, *avals, **parameters
        )

    return keep


def compiler_options() -> dict | None:
    """For what is jitted around the scan, on a GPU: matrix products by cuBLAS, each by itself, which then
    reads a layer's weights where they lie in the stack of layers. XLA's own kernels, and products that XLA
    joins, are handed a copy of the layer, which makes three passes over the weights of one. And stacks of
    kept values that are not filled with zeros before they are filled."""
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
