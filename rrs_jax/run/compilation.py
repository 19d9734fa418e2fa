"""Compiled programs: where they are kept between runs, and the time that making them takes."""

import functools
import os
import time

import jax

from rrs_jax.files import cache_folder


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in $RRS_JAX_CACHE/compiled or ~/.cache/rrs_jax/compiled."""
    folder = cache_folder() / "compiled"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a sweep's processes need hundreds of them, and each takes longer to compile than to
    # read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class CompileClock:
    """Seconds in which this process was making programs for its devices, or reading them from the cache;
    those that are made side by side count once."""

    EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")

    def __init__(self):
        self.seconds, self.programs, self._until = 0.0, 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_) -> None:
        if event in self.EVENTS:
            now = time.monotonic()
            self.seconds += max(now - max(now - seconds, self._until), 0.0)
            self._until = now
            self.programs += event == self.EVENTS[1]


@functools.cache
def compile_clock() -> CompileClock:
    return CompileClock()
