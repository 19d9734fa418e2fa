"""A constant added to the hidden state behind chosen layers, in the place of LoRA."""

import jax
import numpy as np
from flax import nnx

from rrs_jax.models.lora import LoRAConfig


class Shift(nnx.Module):
    """Adds its vector, one a layer (L, D), to what a linear gives."""

    def __init__(self, vectors: jax.Array):
        self.vectors = nnx.Param(vectors)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.vectors[...].astype(x.dtype)


class Steering(nnx.Module):
    """Stands where a model has its LoRA. A layer ends by adding the output of `down_proj` to the hidden state, so what
    is added to that output is added behind the layer, at every position."""

    def __init__(self, vectors: jax.Array):
        """vectors: float32 (L, D), 0 for layers that are left alone."""
        self.config = LoRAConfig(rank=1, targets=("down_proj",))
        self.down_proj = Shift(vectors)

    def pair(self, target: str) -> Shift | None:
        return self.down_proj if target == "down_proj" else None

    def fixed(self, _) -> "Steering":
        """As LoRA's, which then is cast once for all steps of decoding: there is nothing to cast."""
        return self


def steered(model: nnx.Module, layers: list[int], vectors: np.ndarray, sharding) -> nnx.Module:
    """The model, its arrays shared, with `vectors` (len(layers), D) added behind `layers`."""
    clone = nnx.merge(*nnx.split(model))
    whole = np.zeros((model.config.text.num_hidden_layers, vectors.shape[1]), np.float32)
    whole[layers] = vectors
    clone.lora = nnx.data(Steering(jax.device_put(whole, sharding)))
    return clone
