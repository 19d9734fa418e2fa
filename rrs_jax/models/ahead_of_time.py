"""A function's programs for several shapes, compiled side by side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from rrs_jax.distributed.machine import cores

WORKERS = max(4, min(8, cores()))


class Programs:
    """A jitted function that can be compiled for several shapes before it is called.

    `jax.jit` compiles for a shape when it is first called with it, one shape behind the other. `prepare` has
    one thread for each, since most of a compilation runs on one processor.
    """

    def __init__(self, function):
        self.function = function
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def prepare(self, calls: Sequence[tuple]) -> bool:
        """Compiles for the arguments of calls to come, of which nothing is given away; whether it did. One
        alone, or where several processes have to compile in the same order, is left to its first call."""
        missing = {key: call for call in calls if (key := _key(call)) not in self._compiled}
        if len(missing) < 2 or jax.process_count() > 1:
            return not missing
        with ThreadPoolExecutor(WORKERS) as pool:
            compiled = pool.map(lambda call: self.function.lower(*call).compile(), missing.values())
            self._compiled |= zip(missing, compiled, strict=True)
        return True

    def __call__(self, *arguments):
        if not self._compiled:
            return self.function(*arguments)
        return self._compiled.get(_key(arguments), self.function)(*arguments)

    def count(self) -> int:
        """Shapes that it was compiled for."""
        return len(self._compiled) + self.function._cache_size()


def _key(arguments: tuple) -> tuple:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, *((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
