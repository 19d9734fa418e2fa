"""Which decoder layers a rival acts behind."""

from collections.abc import Sequence

from rrs_jax.errors import UserError


def chosen_layers(work, shares: Sequence[float]) -> list[int]:
    """`rivals.layers`, or those at these shares of the decoder's depth. Raises UserError for layers that it
    lacks."""
    count = work.vanilla.config.text.num_hidden_layers
    if not work.config.rivals.layers:
        return sorted({min(round(share * count), count - 1) for share in shares})
    layers = sorted(int(layer) for layer in work.config.rivals.layers)
    if layers[-1] >= count:
        raise UserError(
            f"rivals.layers: {layers[-1]} is no layer of the decoder's {count}; choose 0 to {count - 1}."
        )
    return layers
