"""LoRA (Hu et al. 2022) as PEFT initialises and scales it, stacked over the layers that carry it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from rrs_jax.errors import UserError
from rrs_jax.models.adapters import SAME_INPUT, Adapters
from rrs_jax.models.dropout import Dropout


class LoRAParam(nnx.Param):
    """Marks the only parameters that are trained."""


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Settings of the adapters; a pair adds `alpha / rank` times its product.

    Attributes:
      targets: names of linears; None stands for all of the decoder, which `LoRA.config` then names.
      first_layer: layers below it carry no adapter, so nothing is differentiated through them.
      dropout: probability that training drops a number of a pair's input (`rrs_jax.models.dropout`).
    """

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
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """Factor of a pair's product."""
        return self.alpha / self.rank


class LoRAPair(nnx.Module):
    """A (L, I, R) and B (L, R, O), float32: adds `x @ lora_a @ lora_b * scale` to a linear's output."""

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
        """The pair of a target, None for a linear without one."""
        return getattr(self, target, None)

    def pairs(self) -> list[tuple[jax.Array, jax.Array, float]]:
        """A (L, in, R), B (L, R, out) and scale of every target."""
        found = [self.pair(target) for target in self.config.targets]
        return [(pair.lora_a[...], pair.lora_b[...], pair.scale) for pair in found]

    def packed(
        self,
        dtype,
        released: dict[str, tuple[str, int | None]],
        *,
        all_layers: bool = False,
        kept: float = 1.0,
    ) -> Adapters:
        """The pairs as the decoder's linears compute them, stacked over the layers that carry adapters, or
        over all, zero where there are none.

        Linears of one input share a thin product. Example: rank 2, scale s, pairs for q_proj and v_proj.

            a["q_proj"] = [A_q  A_v]                            (L, D, 4): x @ a is both thin products
            b["q_proj"] = [s·B_q]      b["v_proj"] = [  0  ]    (L, 4, O): each reads its two columns
                          [  0  ]                    [s·B_v]

        released: see `DecoderLayer.released`; kept: share of its input that an adapter sees, 1 − p with
        dropout, which divides B.
        """
        a, b = {}, {}
        for names in SAME_INPUT:
            targets = self._targets_of(names, released)
            if targets:
                a[names[0]] = jnp.concatenate([self.pair(target).lora_a[...] for target in targets], axis=-1)
            for name in names:
                target, third = released[name]
                if target in targets:
                    scaled = self._scaled_b(target, third) / kept
                    b[name] = self._among(scaled, targets.index(target), len(targets))
        adapters = jax.tree.map(lambda leaf: leaf.astype(dtype), Adapters(a, b))
        if all_layers and self.config.first_layer:
            below = (self.config.first_layer, 0), (0, 0), (0, 0)
            adapters = jax.tree.map(lambda leaf: jnp.pad(leaf, below), adapters)
        return adapters

    def draw_dropout(
        self, key: jax.Array, released: dict[str, tuple[str, int | None]], shape: tuple[int, int, int]
    ) -> Dropout:
        """Masks for a pass of `packed` adapters; `shape` is (layers of the decoder, B, T)."""
        owners = {name: target for name, (target, _) in released.items() if self.pair(target)}
        widest = max(self.pair(target).lora_a.shape[1] for target in self.config.targets)
        return Dropout.draw(key, owners, self.config.dropout, (*shape, widest))

    def _targets_of(self, names: tuple[str, ...], released: dict[str, tuple[str, int | None]]) -> list[str]:
        """Targets with a pair that compute one of the linears `names`, each once."""
        return [target for target in dict.fromkeys(released[name][0] for name in names) if self.pair(target)]

    def _scaled_b(self, target: str, third: int | None) -> jax.Array:
        """B times the scale, (L, R, O); a third of its outputs where the released linear computes three."""
        pair = self.pair(target)
        lora_b = pair.lora_b[...] * pair.scale
        return lora_b if third is None else jnp.split(lora_b, 3, axis=-1)[third]

    def _among(self, lora_b: jax.Array, place: int, count: int) -> jax.Array:
        """B (L, R, O) as rows `place` of `count` blocks of R rows, zero in the others."""
        rank = self.config.rank
        return jnp.pad(lora_b, [(0, 0), (rank * place, rank * (count - 1 - place)), (0, 0)])

    def initialise(self, key: jax.Array) -> None:
        """Draws A uniformly in ±1/sqrt(I) (torch's kaiming_uniform with a=sqrt(5), as PEFT) and sets B to
        zero."""
        for index, target in enumerate(self.config.targets):
            pair = self.pair(target)
            shape = pair.lora_a.shape
            bound = 1.0 / math.sqrt(shape[-2])
            sample = jax.random.uniform(jax.random.fold_in(key, index), shape, jnp.float32, -bound, bound)
            pair.lora_a.set_value(sample)
            pair.lora_b.set_value(jnp.zeros(pair.lora_b.shape, jnp.float32))
