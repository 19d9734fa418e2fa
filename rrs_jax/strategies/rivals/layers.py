"""Decoder layers that a rival acts behind."""

from collections.abc import Sequence

from rrs_jax.errors import UserError


def chosen_layers(asked: Sequence[str | int], count: int, shares: Sequence[float]) -> list[int]:
    """Layers of `rivals.layers`, ascending; where it is empty, those at these shares of the decoder's
    `count`.

    Raises UserError for layers that the decoder lacks.
    """
    if not asked:
        return sorted({min(round(share * count), count - 1) for share in shares})
    layers = sorted(int(layer) for layer in asked)
    if layers[-1] >= count:
        raise UserError(
            f"rivals.layers: {layers[-1]} is no layer of the decoder's {count}; choose 0 to {count - 1}."
        )
    return layers
