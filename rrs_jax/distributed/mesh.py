"""Devices as a mesh with the axes `data`, `fsdp` and `tensor`, and how each parameter is cut over them."""

import functools
import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrs_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# First match wins; the specification covers the last dimensions, so that a leading layer axis is never cut.
PARTITION_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"lora_[ab]$", ()),
    (r"(embed_tokens|lm_head)$", ("tensor", "fsdp")),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)\.kernel$", ("fsdp", "tensor")),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)\.weight$", ("tensor", "fsdp")),  # of float8, as torch has it
    (r"(o_proj|down_proj)\.weight$", ("fsdp", "tensor")),
    (r"(o_proj|out_proj|down_proj|fc2)\.kernel$", ("tensor", "fsdp")),
    (r".*", ()),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices; one axis may be -1 and takes what the others leave.

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
    """The mesh on which a model's parameters lie; a single device is a mesh of one."""
    leaf = jax.tree.leaves(model)[0]
    if isinstance(leaf.sharding, NamedSharding):
        return leaf.sharding.mesh
    return make_mesh(devices=list(leaf.sharding.device_set))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp` together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put(tree, sharding: NamedSharding):
    """Arrays of the host, the same in every process, onto the mesh's devices; of several processes each sends
    what lies on its own."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def spread(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(spread, tree)


def fetch(tree):
    """Arrays as NumPy's. Where other processes hold parts of one, all have to fetch it at the same point."""

    def whole(array):
        if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
            return array
        return _gathered(replicated(array.sharding.mesh))(array)

    return jax.device_get(jax.tree.map(whole, tree))


@functools.cache
def _gathered(sharding: NamedSharding):
    return jax.jit(lambda array: array, out_shardings=sharding)


def rows_multiple(mesh: Mesh) -> int:
    """A batch's rows must be a multiple of this."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parameter_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """By the first rule that matches the dotted path; an axis that does not divide its dimension is left
    whole."""
    rule = next(spec for pattern, spec in PARTITION_RULES if re.search(pattern, path))
    spec = (None,) * (len(shape) - len(rule)) + rule
    spec = tuple(axis if axis and shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(spec))
    return NamedSharding(mesh, PartitionSpec(*spec))
