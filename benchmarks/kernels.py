"""The device's time by kernel: the kernels of a piece of work, from JAX's profiler."""

import collections
import re
import tempfile
from pathlib import Path

import jax
from jax.profiler import ProfileData


def kernels(work, repeats: int = 3) -> dict[str, tuple[float, float]]:
    """Runs `work()` so often; name to (milliseconds, launches) of one run, the longest first. Names are
    without the numbers by which XLA tells equal kernels apart."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                result = work()
            jax.block_until_ready(result)
        found = collections.defaultdict(lambda: [0.0, 0])
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in ProfileData.from_file(str(path)).planes:
                if not plane.name.startswith("/device:GPU"):
                    continue
                for line in plane.lines:
                    if not line.name.startswith("Stream"):
                        continue
                    for event in line.events:
                        name = re.sub(r"[._]\d+(?=$|[._])", "", event.name)
                        found[name][0] += event.duration_ns / 1e6 / repeats
                        found[name][1] += 1 / repeats
        if not found and jax.default_backend() == "gpu":
            raise RuntimeError(f"the trace has no line of a GPU's stream; it has {_lines(folder)}")
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    return {name: (time, launches) for name, (time, launches) in ordered}


def _lines(folder: str) -> list[str]:
    planes = [
        plane
        for path in Path(folder).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(path)).planes
    ]
    return [f"{plane.name}: {line.name}" for plane in planes for line in plane.lines]


def summary(found: dict[str, tuple[float, float]], most: int = 12) -> dict:
    """Total milliseconds and launches, and the `most` longest kernels as text."""
    top = [
        f"{time:.2f} ms {launches:.0f}x {name[:90]}" for name, (time, launches) in list(found.items())[:most]
    ]
    return {
        "kernel_milliseconds": round(sum(time for time, _ in found.values()), 1),
        "launches": round(sum(launches for _, launches in found.values())),
        "top": top,
    }
