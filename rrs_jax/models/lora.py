"""LoRA (Hu et al. 2022) as PEFT initialises and scales it, stacked over the layers that carry it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.errors import UserError
from rrs_jax.models.adapters import SAME_INPUT, Adapters


class LoRAParam(nnx.Param):
    """Marks the only parameters that are trained."""


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """`targets`: None stands for all linears of the decoder, which `LoRA.config` then names. `first_layer`:
    layers below it carry no adapter, so nothing is differentiated through them."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | None = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    first_layer: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRAPair(nnx.Module):
    """A (in, R) and B (R, out), float32: adds `x @ lora_a @ lora_b * scale` to a linear's output."""

    def __init__(
        self, in_features: int, out_features: int, *, rank: int, scale: float, stack: tuple[int, ...]
    ):
        self.lora_a = LoRAParam(jnp.zeros((*stack, in_features, rank), jnp.float32))
        self.lora_b = LoRAParam(jnp.zeros((*stack, rank, out_features), jnp.float32))
        self.scale = scale


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
                *linears[target],
                rank=config.rank,
                scale=config.scale,
                stack=(num_layers - config.first_layer,),
            )
            setattr(self, target, pair)

    def pair(self, target: str) -> LoRAPair | None:
        return getattr(self, target, None)

    def pairs(self) -> list[tuple[jax.Array, jax.Array, float]]:
        """A (L, in, R), B (L, R, out) and scale of every target."""
        found = [self.pair(target) for target in self.config.targets]
        return [(pair.lora_a[...], pair.lora_b[...], pair.scale) for pair in found]

    def packed(
        self, dtype, released: dict[str, tuple[str, int | None]], *, all_layers: bool = False
    ) -> Adapters:
        """As the decoder's linears compute them, stacked over the layers that carry adapters, or over all,
        zero where there are none. `released`: see `DecoderLayer.released`."""
        below = self.config.first_layer if all_layers else 0
        rank = self.config.rank
        a, b = {}, {}
        for names in SAME_INPUT:
            targets = [
                target for target in dict.fromkeys(released[name][0] for name in names) if self.pair(target)
            ]
            if not targets:
                continue
            a[names[0]] = jnp.concatenate([self.pair(target).lora_a[...] for target in targets], axis=-1)
            for name in names:
                target, third = released[name]
                if target not in targets:
                    continue
                pair, place = self.pair(target), targets.index(target)
                lora_b = pair.lora_b[...] * pair.scale
                if third is not None:
                    lora_b = jnp.split(lora_b, 3, axis=-1)[third]
                rows = (rank * place, rank * (len(targets) - 1 - place))
                b[name] = jnp.pad(lora_b, [(0, 0), rows, (0, 0)])
        adapters = jax.tree.map(lambda leaf: leaf.astype(dtype), Adapters(a, b))
        return (
            jax.tree.map(lambda leaf: jnp.pad(leaf, [(below, 0), (0, 0), (0, 0)]), adapters)
            if below
            else adapters
        )

    def initialise(self, key: jax.Array) -> None:
        """A uniform in ±1/sqrt(in) (torch's kaiming_uniform with a=sqrt(5), as PEFT), B zero."""
        for index, target in enumerate(self.config.targets):
            pair = self.pair(target)
            shape = pair.lora_a.shape
            bound = 1.0 / math.sqrt(shape[-2])
            sample = jax.random.uniform(jax.random.fold_in(key, index), shape, jnp.float32, -bound, bound)
            pair.lora_a.set_value(sample)
            pair.lora_b.set_value(jnp.zeros(pair.lora_b.shape, jnp.float32))
