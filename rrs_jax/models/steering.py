"""A constant added to the hidden state behind chosen layers, in the place of LoRA."""

import flax.struct
import jax
import numpy as np
from flax import nnx

from rrs_jax.distributed.mesh import put
from rrs_jax.models.lora import LoRAConfig


@flax.struct.dataclass
class Shift:
    """Vectors (L, D), or one layer's (D,), added to what `down_proj` gives."""

    vectors: jax.Array

    def apply(self, names: tuple[str, ...], x: jax.Array, linears) -> list[jax.Array]:
        """Outputs of the linears `names`, which read x."""
        outputs = [linear(x) for linear in linears]
        return [outputs[0] + self.vectors] if names == ("down_proj",) else outputs


class Steering(nnx.Module):
    """Vectors that stand where a model has its LoRA. A layer ends by adding the output of `down_proj` to the
    hidden state, so what is added to that output is added behind the layer, at every position."""

    def __init__(self, vectors: jax.Array):
        """vectors: float32 (L, D), 0 for layers that are left alone."""
        self.config = LoRAConfig(rank=1, targets=("down_proj",))
        self.vectors = nnx.Param(vectors)

    def packed(self, dtype, released, *, all_layers: bool = False) -> Shift:
        """The vectors as the decoder adds them, in `dtype`. They stand on all layers and under one name in
        every architecture, so that the other arguments of `LoRA.packed` change nothing."""
        return Shift(self.vectors[...].astype(dtype))


def steered(model: nnx.Module, layers: list[int], vectors: np.ndarray, sharding) -> nnx.Module:
    """The model, its arrays shared, with `vectors` (len(layers), D) added behind `layers`."""
    clone = nnx.merge(*nnx.split(model))
    whole = np.zeros((model.config.text.num_hidden_layers, vectors.shape[1]), np.float32)
    whole[layers] = vectors
    clone.lora = nnx.data(Steering(put(whole, sharding)))
    return clone
