"""Tensors that are made when they are written, so that no whole model is ever in memory."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.progress import Progress
from rrs_jax.weights.safetensors_io import write_shard

# float16 rather than bfloat16: a Q8_0 value is a float16 scale times an integer up to 127, and CTranslate2's
# Whisper is float16 to begin with. Rounding to float16 errs by at most 2^-11 of a value; to bfloat16 by 2^-8,
# as much as half a step of Q8_0 at its largest values. Nothing here comes near float16's limit of 65504, and
# the writer checks it.
DTYPE = np.dtype(np.float16)


@dataclass(frozen=True)
class LazyTensor:
    """A named tensor; `make` gives its values in a float dtype when their turn comes."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> "LazyTensor":
        """Returns a tensor that exists already."""
        return cls(name, tuple(array.shape), lambda: array)

    def values(self) -> np.ndarray:
        """Returns the values as float16. Raises UserError for another shape or values that are not finite."""
        array = self.make()
        with np.errstate(over="ignore"):
            values = array.astype(DTYPE, copy=False)
        if values.shape != self.shape or not np.isfinite(values).all():
            raise UserError(
                f"{self.name}: has the shape {values.shape} in place of {self.shape} or values that are not "
                "finite in float16; the source file is damaged or is another model."
            )
        return values


def write_tensors(path: Path, tensors: Iterable[LazyTensor], what: str) -> None:
    """Writes the tensors as float16 to `path`, in the given order.

    The file has the metadata that transformers asks for; `what` names the work in the progress bar.
    """
    tensors = list(tensors)
    megabytes = [math.prod(tensor.shape) * DTYPE.itemsize // 1_000_000 for tensor in tensors]
    with Progress(sum(megabytes), what, unit="MB") as progress:

        def make(tensor: LazyTensor, size: int) -> np.ndarray:
            values = tensor.values()
            progress.update(size)
            return values

        rows = [
            (tensor.name, DTYPE, tensor.shape, lambda tensor=tensor, size=size: make(tensor, size))
            for tensor, size in zip(tensors, megabytes, strict=True)
        ]
        write_shard(path, rows, {"format": "pt"})
