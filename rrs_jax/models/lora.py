"""LoRA (Hu et al. 2022) as PEFT initialises and scales it, stacked over the layers that carry it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.errors import UserError


class LoRAParam(nnx.Param):
    """Marks the only parameters that are trained."""


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """`targets`: None stands for all linears of the decoder, which `LoRA.config` then names. `first_layer`: layers
    below it carry no adapter, so nothing is differentiated through them."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | None = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    first_layer: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRAPair(nnx.Module):
    """`x @ lora_a @ lora_b * scale`, computed in x's dtype from float32 parameters."""

    def __init__(self, in_features: int, out_features: int, *, rank: int, scale: float, stack: tuple[int, ...]):
        self.lora_a = LoRAParam(jnp.zeros((*stack, in_features, rank), jnp.float32))
        self.lora_b = LoRAParam(jnp.zeros((*stack, rank, out_features), jnp.float32))
        self.scale = scale

    def __call__(self, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
        """All outputs, or some `columns` of them."""
        lora_b = self.lora_b[...][..., columns] * self.scale
        return (x @ self.lora_a[...].astype(x.dtype)) @ lora_b.astype(x.dtype)


class LoRA(nnx.Module):
    """One pair for each target, each stacked over layers `first_layer` to the last.

    Args:
      linears: name to (in, out) of every linear that a decoder layer has.
    Raises UserError for a target that matches none of them, or a first layer that leaves none.
    """

    def __init__(self, config: LoRAConfig, linears: dict[str, tuple[int, int]], num_layers: int):
        if config.targets is None:
            config = dataclasses.replace(config, targets=tuple(linears))
        unknown = [target for target in config.targets if target not in linears]
        if unknown or not config.targets:
            raise UserError(
                f"lora.targets: {', '.join(unknown) or 'an empty list'} matches no linear of the decoder; "
                f"choose among {', '.join(linears)}."
            )
        if not 0 <= config.first_layer < num_layers:
            raise UserError(
                f"lora.layers: {config.first_layer} leaves no layer of the decoder's {num_layers}; "
                f"choose 0 to {num_layers - 1}."
            )
        self.config = config
        for target in config.targets:
            pair = LoRAPair(
                *linears[target], rank=config.rank, scale=config.scale, stack=(num_layers - config.first_layer,)
            )
            setattr(self, target, pair)

    def pair(self, target: str) -> LoRAPair | None:
        return getattr(self, target, None)

    def fixed(self, dtype) -> "LoRA":
        """The same adapters for use without training: on all layers, zero where there are none, in `dtype`, with the
        scale folded in."""
        pairs = {target: self.pair(target) for target in self.config.targets}
        first = self.config.first_layer
        if not first and all(pair.scale == 1.0 and pair.lora_a.dtype == dtype for pair in pairs.values()):
            return self
        sizes = {target: (pair.lora_a.shape[-2], pair.lora_b.shape[-1]) for target, pair in pairs.items()}
        config = dataclasses.replace(self.config, first_layer=0, alpha=float(self.config.rank))
        fixed = LoRA(config, sizes, first + pairs[self.config.targets[0]].lora_a.shape[0])
        for target, pair in pairs.items():
            for name, factor in (("lora_a", 1.0), ("lora_b", pair.scale)):
                value = (getattr(pair, name)[...] * factor).astype(dtype)
                getattr(fixed.pair(target), name).set_value(jnp.pad(value, [(first, 0), (0, 0), (0, 0)]))
        return fixed

    def initialise(self, key: jax.Array) -> None:
        """A uniform in ±1/sqrt(in) (torch's kaiming_uniform with a=sqrt(5), as PEFT), B zero."""
        for index, target in enumerate(self.config.targets):
            pair = self.pair(target)
            shape = pair.lora_a.shape
            bound = 1.0 / math.sqrt(shape[-2])
            sample = jax.random.uniform(jax.random.fold_in(key, index), shape, jnp.float32, -bound, bound)
            pair.lora_a.set_value(sample)
            pair.lora_b.set_value(jnp.zeros(pair.lora_b.shape, jnp.float32))
