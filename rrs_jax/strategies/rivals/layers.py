"""Decoder layers that a rival acts behind."""

from collections.abc import Sequence

from rrs_jax.errors import UserError


def chosen_layers(
    asked: Sequence[str | int], count: int, shares: Sequence[float], first: int = 0
) -> list[int]:
    """Layers of `rivals.layers`, ascending; where it is empty, those at these shares of the decoder's
    `count`, or layer `first` in place of lower ones.

    first: the first layer with an adapter, since training changes nothing behind lower ones.
    Raises UserError for layers that the decoder lacks, or below `first`.
    """
    if not asked:
        return sorted({min(max(round(share * count), first), count - 1) for share in shares})
    layers = sorted(int(layer) for layer in asked)
    if layers[-1] >= count:
        raise UserError(
            f"rivals.layers: {layers[-1]} is no layer of the decoder's {count}; choose 0 to {count - 1}."
        )
    if layers[0] < first:
        raise UserError(
            f"rivals.layers: training changes nothing behind layer {layers[0]}, since lora.layers has its"
            f" first adapter in layer {first}; choose layers from {first} on, or let adapters begin lower."
        )
    return layers


def first_adapted(config) -> int:
    """The first layer with an adapter (`lora.layers`)."""
    return 0 if config.lora.layers == "all" else config.lora.layers
