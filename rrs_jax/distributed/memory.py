"""Memory of the devices on which a process works: all of it, and what is left."""

import jax
from jax.sharding import Mesh

from rrs_jax.distributed import processes
from rrs_jax.distributed.machine import available_memory, machine_memory


def device_memory() -> float:
    """Returns the bytes that one device offers; of a CPU, the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or machine_memory()


def free_memory(mesh: Mesh | None = None) -> float:
    """Returns the bytes that are left on the fullest of this process's devices, or of those of a mesh; CPU
    devices share what the machine has left."""
    devices = jax.local_devices() if mesh is None else mesh.local_devices
    stats = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in each for each in stats):
        return available_memory() / len(stats)
    return min(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in stats)


def least_free_memory(mesh: Mesh | None = None) -> float:
    """Returns the least `free_memory` of any process of the run, or of a mesh; all of them have to call
    it."""
    if mesh is not None and not mesh.is_multi_process:
        return free_memory(mesh)
    return min(map(float, processes.gather(str(free_memory(mesh)))))
