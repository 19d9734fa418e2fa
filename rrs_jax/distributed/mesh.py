"""Devices as a mesh with the axes `data`, `fsdp` and `tensor`, and how each parameter is sharded."""

import contextvars
import functools
import re
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrs_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# First match wins; the specification covers the last dimensions, so that a leading layer axis is never cut.
# What `fsdp` cuts is gathered layer by layer, so it cuts the outer dimension: parts of the inner one would
# have to be interleaved, for which XLA transposes the whole stack first.
PARTITION_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"lora_[ab]$", ()),
    (r"(embed_tokens|lm_head)$", ("tensor", "fsdp")),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)\.kernel$", ("fsdp", "tensor")),
    (r"(o_proj|out_proj|down_proj|fc2)\.kernel$", (("tensor", "fsdp"), None)),
    # Of float8, as torch has them: (out, in).
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)\.weight$", (("tensor", "fsdp"), None)),
    (r"(o_proj|down_proj)\.weight$", ("fsdp", "tensor")),
    (r".*", ()),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Returns a mesh over all devices; one axis may be -1 and takes what the others leave.

    Raises UserError where the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(
            f"mesh: {dict(zip(AXES, sizes, strict=True))} is no mesh; one axis may be -1, the rest are 1 or"
            " more."
        )
    if -1 in sizes:
        known = int(np.prod([size for size in sizes if size != -1]))
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh: data × fsdp × tensor = {' × '.join(map(str, sizes))} does not match the {len(devices)}"
            " devices; set one axis to -1 to take what the others leave."
        )
    return Mesh(np.array(devices).reshape(sizes), AXES)


def mesh_of(model) -> Mesh:
    """Returns the mesh on which a model's parameters lie; a single device is a mesh of one."""
    leaf = jax.tree.leaves(model)[0]
    if isinstance(leaf.sharding, NamedSharding):
        return leaf.sharding.mesh
    return make_mesh(devices=list(leaf.sharding.device_set))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over `data` and `fsdp` together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put(tree, sharding: NamedSharding):
    """Puts a tree of host arrays, the same in every process, on the mesh's devices.

    Each process sends the parts that lie on its own devices.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def spread(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(spread, tree)


def fetch(tree):
    """Returns a tree of device arrays as NumPy arrays.

    Where other processes hold parts of an array, all of them have to fetch it at the same point.
    """

    def whole(array):
        if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
            return array
        return _gathered(replicated(array.sharding.mesh))(array)

    return jax.device_get(jax.tree.map(whole, tree))


@functools.cache
def _gathered(sharding: NamedSharding):
    return jax.jit(lambda array: array, out_shardings=sharding)


_traced_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("traced_mesh", default=None)


def each_by_itself(mesh: Mesh, function: Callable, in_specs, out_specs) -> Callable:
    """Returns `function` for `jax.jit`, run by each part of the axis `data` with its own rows, as if there
    were no others; XLA cuts it over `fsdp` and `tensor` alone.

    in_specs, out_specs: as `jax.shard_map` takes them, which name no axis but `data`.
    """
    if mesh.shape["data"] == 1:
        return function
    alone = mesh.shape["data"] == mesh.size
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(AXES) if alone else {"data"},
        check_vma=False,
    )


def each_with_its_rows(function: Callable, in_specs, out_specs: PartitionSpec) -> Callable:
    """Returns `function` run by each device of the traced mesh with its own rows, as `jax.shard_map` cuts
    arrays; as it is where the mesh has one device.

    out_specs: of its one result. What that does not cut is added up over the rows of all devices.
    """
    mesh = _traced_mesh.get()
    if mesh is None or mesh.size == 1:
        return function

    def own(*arrays):
        found = function(*arrays)
        return found if any(out_specs) else jax.lax.psum(found, ("data", "fsdp"))

    return jax.shard_map(own, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def traced_on(mesh: Mesh, function: Callable) -> Callable:
    """Returns `function` for `jax.jit`, with the functions below bound to `mesh` while it is traced.

    Without them XLA may keep a cut weight where it lies and cut the products instead: every device then has
    all rows of the batch, and `fsdp` saves no activations.
    """

    @functools.wraps(function)
    def traced(*arguments):
        token = _traced_mesh.set(mesh)
        try:
            return function(*arguments)
        finally:
            _traced_mesh.reset(token)

    return traced


def traced_size(axis: str) -> int:
    """Size of an axis of the mesh that `traced_on` names; 1 where it names none."""
    mesh = _traced_mesh.get()
    return 1 if mesh is None else mesh.shape[axis]


def rows_over(tree):
    """Arrays (B, ...) with their rows cut over `data` and `fsdp`, where the traced mesh has `fsdp`."""
    multiple = traced_size("data") * traced_size("fsdp")

    def cut(array):
        fits = array.ndim and array.shape[0] % multiple == 0
        return _constrained(array, ("data", "fsdp")) if fits else array

    return tree if traced_size("fsdp") == 1 else jax.tree.map(cut, tree)


def gathered(layer):
    """One layer's frozen weights, a tree with the parameters' names, each whole along `fsdp` and still cut
    along `tensor`, where the traced mesh has `fsdp`."""
    mesh = _traced_mesh.get()

    def whole(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        spec = parameter_sharding(mesh, name, array.shape).spec
        if not any("fsdp" in _axes(entry) for entry in spec):
            return array
        return _constrained(
            array, *[tuple(axis for axis in _axes(entry) if axis != "fsdp") for entry in spec]
        )

    return layer if traced_size("fsdp") == 1 else jax.tree_util.tree_map_with_path(whole, layer)


def looked_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """`table[ids]` of an embedding (V, D) and ids (B, T): (B, T, D). Where the traced mesh cuts the table
    over `fsdp`, each device looks its columns up for all its neighbours' rows and they exchange them."""
    (rows, _), width, fsdp = ids.shape, table.shape[1], traced_size("fsdp")
    if fsdp == 1 or width % fsdp or rows % (traced_size("data") * fsdp):
        return table[ids]
    columns = _constrained(table[_constrained(ids, "data")], "data", None, "fsdp")
    return rows_over(columns)


def _constrained(array: jax.Array, *spec) -> jax.Array:
    spec = [entry or None for entry in spec]
    return jax.lax.with_sharding_constraint(array, NamedSharding(_traced_mesh.get(), PartitionSpec(*spec)))


def rows_multiple(mesh: Mesh) -> int:
    """Returns the number of which a batch's rows must be a multiple."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parameter_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns a parameter's sharding by the first of `PARTITION_RULES` that matches its dotted path.

    A mesh axis that does not divide its dimension is left out there.
    """
    rule = next(spec for pattern, spec in PARTITION_RULES if re.search(pattern, path))
    spec = (None,) * (len(shape) - len(rule)) + rule
    return NamedSharding(mesh, PartitionSpec(*map(functools.partial(_dividing, mesh), spec, shape)))


def _dividing(mesh: Mesh, axes: str | tuple[str, ...] | None, size: int) -> str | tuple[str, ...] | None:
    """A dimension's axes, in their order, without those that do not divide what is left of its size."""
    kept = []
    for axis in _axes(axes):
        if size % mesh.shape[axis] == 0:
            size //= mesh.shape[axis]
            kept.append(axis)
    return tuple(kept) if len(kept) > 1 else kept[0] if kept else None


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()
