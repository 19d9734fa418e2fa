"""The thin products of adapters with dropout, in one kernel for each pass (Pallas, for an NVIDIA GPU).

XLA's products read what they multiply from memory, so that every adapter's masked copy of x, and backward
every part of x's gradient, is written and read again. Here a program reads a tile of x once and makes the
masks of all adapters in registers. What is added up is added up in one order, so that a pass made again is
the same bit for bit.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from rrs_jax.models.dropout import Dropout, kept

LEAST = 16  # numbers along any side of a tensor core's tile
HIGHEST_RANK = 64  # at 128 the sums of three adapters do not fit into a program's registers


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a product is cut into programs.

    Attributes:
      tokens, features: of a tile of x, powers of two.
      tiles: of one program, along the axis that is summed over. What several programs have is added up
        behind the kernel.
      warps: of a program.
      stages: tiles in flight.
    """

    tokens: int
    features: int
    tiles: int
    warps: int = 4
    stages: int = 3


# The best of 24 choices on an H200 with 2304 tokens, 4096 and 11,008 features, and rank 16.
PRODUCT, OF_INPUT, OF_MATRIX = Tiles(64, 64, 8), Tiles(64, 64, 1), Tiles(64, 64, 6)


def serves(dtype, shape: tuple[int, int], rank: int) -> bool:
    """True where an input of this shape (tokens, features) has 16 bit, is whole tiles wide and has a tile's
    tokens, and its adapters' sums fit into registers."""
    (tokens, features), tiles = shape, (PRODUCT, OF_INPUT, OF_MATRIX)
    fits = all(features % one.features == 0 and tokens >= one.tokens for one in tiles)
    return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and fits and rank <= HIGHEST_RANK


def thin_product(
    numbers: tuple[int, ...],
    x: jax.Array,
    a: jax.Array,
    dropout: Dropout,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """That of `rrs_jax.models.thin_products`. `interpret` runs the kernel's operations one by one, on any
    device."""
    tiles = tiles or PRODUCT
    tokens, wide = x.size // x.shape[-1], _widened(a, len(numbers))
    parts = pl.cdiv(x.shape[-1], tiles.features * tiles.tiles)
    sums = _call(
        functools.partial(_product_kernel, numbers=numbers, threshold=dropout.threshold, tiles=tiles),
        (pl.cdiv(tokens, tiles.tokens), parts),
        _partial(parts, (tokens, wide.shape[1]), x.dtype),
        tiles,
        interpret,
    )(x.reshape(tokens, -1), *_hashes(dropout), wide)
    thin = _narrowed(_added(sums, x.dtype), len(numbers), a.shape[1])
    return thin.reshape(*x.shape[:-1], a.shape[1])


def input_gradient(
    numbers: tuple[int, ...],
    a: jax.Array,
    of_thin: jax.Array,
    dropout: Dropout,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """That of `rrs_jax.models.thin_products`."""
    tiles = tiles or OF_INPUT
    tokens, features = of_thin.size // a.shape[1], a.shape[0]
    wide, of_wide = (_widened(one, len(numbers)) for one in (a, of_thin.reshape(tokens, -1)))
    dx = _call(
        functools.partial(_input_kernel, numbers=numbers, threshold=dropout.threshold, tiles=tiles),
        (features // tiles.features, pl.cdiv(tokens, tiles.tokens)),
        jax.ShapeDtypeStruct((tokens, features), of_thin.dtype),
        tiles,
        interpret,
    )(of_wide, *_hashes(dropout), wide)
    return dx.reshape(*of_thin.shape[:-1], features)


def matrix_gradient(
    numbers: tuple[int, ...],
    x: jax.Array,
    of_thin: jax.Array,
    dropout: Dropout,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """That of `rrs_jax.models.thin_products`."""
    tiles = tiles or OF_MATRIX
    tokens, features = x.size // x.shape[-1], x.shape[-1]
    of_wide = _widened(of_thin.reshape(tokens, -1), len(numbers))
    parts = pl.cdiv(tokens, tiles.tokens * tiles.tiles)
    sums = _call(
        functools.partial(_matrix_kernel, numbers=numbers, threshold=dropout.threshold, tiles=tiles),
        (features // tiles.features, parts),
        _partial(parts, (features, of_wide.shape[1]), x.dtype),
        tiles,
        interpret,
    )(x.reshape(tokens, -1), *_hashes(dropout), of_wide)
    return _narrowed(_added(sums, x.dtype), len(numbers), of_thin.shape[-1])


def _call(kernel, grid: tuple[int, int], out_shape: jax.ShapeDtypeStruct, tiles: Tiles, interpret: bool):
    parameters = plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    name = f"dropout{kernel.func.__name__}"
    return pl.pallas_call(
        kernel, grid=grid, out_shape=out_shape, name=name, interpret=interpret, compiler_params=parameters
    )


def _product_kernel(x, hashes, features, a, out, *, numbers: tuple[int, ...], threshold, tiles: Tiles):
    """One program: tokens of the first axis, a part of the features of the second."""
    tokens, real = _tokens(pl.program_id(0), x.shape[0], tiles)
    of_tokens = [_of_tokens(hashes, number, x.shape[0], tokens, real) for number in numbers]
    part, rank = pl.program_id(1), a.shape[1] // len(numbers)

    def add(i, sums):
        columns = pl.ds(i * tiles.features, tiles.features)
        tile, of_features = _load(x, tokens, columns, real), plgpu.load(features.at[columns])[None]
        masked = [jnp.where(kept(of_features, *hashed, threshold), tile, 0) for hashed in of_tokens]
        matrices = [_load(a, columns, _own(k, rank)) for k in range(len(numbers))]
        products = [_dot(one, matrix, 1, 0) for one, matrix in zip(masked, matrices, strict=True)]
        return [one + product for one, product in zip(sums, products, strict=True)]

    first = part * tiles.tiles
    last = jnp.minimum(first + tiles.tiles, x.shape[1] // tiles.features)
    sums = [jnp.zeros((tiles.tokens, rank), jnp.float32) for _ in numbers]
    for k, one in enumerate(jax.lax.fori_loop(first, last, add, sums)):
        shown = jnp.broadcast_to(real[:, None], one.shape)
        plgpu.store(out.at[part, tokens, _own(k, rank)], one.astype(out.dtype), mask=shown)


def _input_kernel(of_thin, hashes, features, a, dx, *, numbers: tuple[int, ...], threshold, tiles: Tiles):
    """One program: a tile of features of the first axis, and of tokens of the second."""
    columns = pl.ds(pl.program_id(0) * tiles.features, tiles.features)
    tokens, real = _tokens(pl.program_id(1), dx.shape[0], tiles)
    of_features, rank = plgpu.load(features.at[columns])[None], a.shape[1] // len(numbers)
    total = jnp.zeros((tiles.tokens, tiles.features), jnp.float32)
    for k, number in enumerate(numbers):
        mask = kept(of_features, *_of_tokens(hashes, number, dx.shape[0], tokens, real), threshold)
        part = _dot(_load(of_thin, tokens, _own(k, rank), real), _load(a, columns, _own(k, rank)), 1, 1)
        total += jnp.where(mask, part, 0)
    shown = jnp.broadcast_to(real[:, None], total.shape)
    plgpu.store(dx.at[tokens, columns], total.astype(dx.dtype), mask=shown)


def _matrix_kernel(x, hashes, features, of_thin, da, *, numbers: tuple[int, ...], threshold, tiles: Tiles):
    """One program: features of the first axis, a part of the tokens of the second."""
    columns, part = pl.ds(pl.program_id(0) * tiles.features, tiles.features), pl.program_id(1)
    of_features, rank = plgpu.load(features.at[columns])[None], of_thin.shape[1] // len(numbers)

    def add(i, sums):
        tokens, real = _tokens(i, x.shape[0], tiles)
        tile, added = _load(x, tokens, columns, real), []
        for k, number in enumerate(numbers):
            mask = kept(of_features, *_of_tokens(hashes, number, x.shape[0], tokens, real), threshold)
            of_own = _load(of_thin, tokens, _own(k, rank), real)
            added.append(sums[k] + _dot(jnp.where(mask, tile, 0), of_own, 0, 0))
        return added

    first = part * tiles.tiles
    last = jnp.minimum(first + tiles.tiles, pl.cdiv(x.shape[0], tiles.tokens))
    sums = [jnp.zeros((tiles.features, rank), jnp.float32) for _ in numbers]
    for k, one in enumerate(jax.lax.fori_loop(first, last, add, sums)):
        plgpu.store(da.at[part, columns, _own(k, rank)], one.astype(da.dtype))


def _hashes(dropout: Dropout) -> tuple[jax.Array, jax.Array]:
    """Hashes of the tokens, all in one axis, and of the features."""
    return dropout.tokens.reshape(-1), dropout.features


def _partial(parts: int, shape: tuple[int, int], dtype) -> jax.ShapeDtypeStruct:
    """Form of what programs write of a sum, float32 if that is added up behind the kernel."""
    return jax.ShapeDtypeStruct((parts, *shape), dtype if parts == 1 else jnp.float32)


def _added(parts: jax.Array, dtype) -> jax.Array:
    return parts[0] if parts.shape[0] == 1 else jnp.sum(parts, axis=0).astype(dtype)


def _tokens(tile: jax.Array, total: int, tiles: Tiles):
    """Slice of a tile's tokens, and which of them there are."""
    first = tile * tiles.tokens
    return pl.ds(first, tiles.tokens), first + jnp.arange(tiles.tokens) < total


def _of_tokens(hashes, adapter: int, total: int, tokens, real) -> list[jax.Array]:
    """An adapter's two hashes of a tile's tokens, out of `total`, as columns."""
    second = hashes.shape[0] // 2
    places = [pl.ds(first + adapter * total + tokens.start, tokens.size) for first in (0, second)]
    return [plgpu.load(hashes.at[place], mask=real, other=0)[:, None] for place in places]


def _own(k: int, rank: int):
    """Slice of adapter k's columns of a thin matrix."""
    return pl.ds(k * rank, rank)


def _load(matrix, rows, columns, real: jax.Array | None = None) -> jax.Array:
    """A tile of a matrix, zero in rows that are not `real`."""
    if real is None:
        return plgpu.load(matrix.at[rows, columns])
    shown = jnp.broadcast_to(real[:, None], (rows.size, columns.size))
    return plgpu.load(matrix.at[rows, columns], mask=shown, other=0)


def _widened(thin: jax.Array, adapters: int) -> jax.Array:
    """A thin matrix (..., K·r) with each adapter's columns filled up to whole tiles of a tensor core."""
    rank = thin.shape[-1] // adapters
    whole = max(LEAST, pl.next_power_of_2(rank))
    if whole == rank:
        return thin
    apart = thin.reshape(*thin.shape[:-1], adapters, rank)
    return jnp.pad(apart, [(0, 0)] * thin.ndim + [(0, whole - rank)]).reshape(*thin.shape[:-1], -1)


def _narrowed(thin: jax.Array, adapters: int, width: int) -> jax.Array:
    """The counterpart of `_widened`: (..., width)."""
    if thin.shape[-1] == width:
        return thin
    apart = thin.reshape(*thin.shape[:-1], adapters, -1)[..., : width // adapters]
    return apart.reshape(*thin.shape[:-1], width)


def _dot(one: jax.Array, other: jax.Array, axis: int, other_axis: int) -> jax.Array:
    axes = ((axis,), (other_axis,)), ((), ())
    return jax.lax.dot_general(one, other, axes, preferred_element_type=jnp.float32)
