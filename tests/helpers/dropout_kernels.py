"""The kernels of adapters with dropout on a CPU."""

import functools

from rrs_jax.models import dropout_kernels, thin_products
from rrs_jax.models.dropout_kernels import Tiles

SMALL = Tiles(16, 8, 2)  # features: of which every width of the small models is a multiple


def interpret_kernels(monkeypatch) -> list[str]:
    """Has the kernels compute whatever has dropout, operation by operation and with small tiles, so that
    every sum has several parts; returns a list that takes the name of each that is traced."""
    used = []

    def interpreted(name: str):
        kernel = getattr(dropout_kernels, name)

        def run(*arguments):
            used.append(name)
            return kernel(*arguments, tiles=SMALL, interpret=True)

        return functools.wraps(kernel)(run)

    monkeypatch.setattr(thin_products, "_in_a_kernel", lambda *_: True)
    for name in ("thin_product", "input_gradient", "matrix_gradient"):
        monkeypatch.setattr(dropout_kernels, name, interpreted(name))
    return used
