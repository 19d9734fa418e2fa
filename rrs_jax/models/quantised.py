"""Frozen matrices in 8 bit, and the two products that a frozen matrix takes part in.

`product` is x·W, `product_back` what the backward pass does with the same matrix, dy·Wᵀ. `Int8` is turned
back into x's dtype before it is multiplied; `Float8` is multiplied as it is, by activations that are rounded
to 8 bit too.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

QUANTISATIONS = ("none", "int8", "float8")
LARGEST = 448.0  # of float8_e4m3fn
SMALLEST_SCALE = 1e-30  # so that a row of zeros divides by a number


@flax.struct.dataclass
class Int8:
    """A matrix (..., in, out) in 8 bit: `steps`, times a float32 scale (..., out) for each output."""

    steps: jax.Array
    scale: jax.Array

    @classmethod
    def of(cls, matrix: jax.Array) -> "Int8":
        """The matrix (..., in, out) in 127 steps up to the largest magnitude of each output's weights."""
        wide = matrix.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=-2) / 127
        steps = jnp.round(wide / jnp.maximum(scale, SMALLEST_SCALE)[..., None, :])
        return cls(steps.astype(jnp.int8), scale)

    def product(self, x: jax.Array) -> jax.Array:
        """x (..., in) times the matrix."""
        return x @ self._dense(x.dtype)

    def product_back(self, dy: jax.Array) -> jax.Array:
        """dy (..., out) times the transposed matrix."""
        return dy @ self._dense(dy.dtype).T

    def _dense(self, dtype) -> jax.Array:
        return (self.steps.astype(jnp.float32) * self.scale[..., None, :]).astype(dtype)


@flax.struct.dataclass
class Float8:
    """A matrix as torch stores it, `rows` (..., out, in) in float8_e4m3fn, times a float32 scale (..., out).

    A row lies in one piece because the products of an H100's 8-bit units sum over what lies in one piece, of
    both operands. The backward pass sums over the outputs: it reads `columns`, the rows transposed (in, out),
    where there is memory for them, else transposes the matrix as it copies it out of its stack.
    """

    rows: jax.Array
    scale: jax.Array
    columns: jax.Array | None = None

    @classmethod
    def of(cls, rows: jax.Array) -> "Float8":
        """The matrix (..., out, in) with each output's weights as multiples of a 448th of the largest
        magnitude among them."""
        rounded, scale = rounded_rows(rows)
        return cls(rounded, scale[..., 0])

    def product(self, x: jax.Array) -> jax.Array:
        """x (..., in) times the matrix, both in 8 bit."""
        return _float8_product(x, self)

    def product_back(self, dy: jax.Array) -> jax.Array:
        """dy (..., out) times the transposed matrix. dy times the outputs' scales is rounded, row by row as x
        is: to e4m3 as well, whose finer steps count for more than the wider range of e5m2."""
        rounded, scale = rounded_rows(dy.astype(jnp.float32) * self.scale)
        columns = _transposed(self.rows) if self.columns is None else self.columns
        return (_sums(rounded, columns, dy.dtype) * scale).astype(dy.dtype)


def product(x: jax.Array, matrix: jax.Array | Int8 | Float8) -> jax.Array:
    """The product of x (..., in) and the matrix (in, out), in x's dtype."""
    return x @ matrix if isinstance(matrix, jax.Array) else matrix.product(x)


def product_back(dy: jax.Array, matrix: jax.Array | Int8 | Float8) -> jax.Array:
    """The product of dy (..., out) and the transposed matrix, in dy's dtype."""
    return dy @ matrix.T if isinstance(matrix, jax.Array) else matrix.product_back(dy)


def rounded_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows x (..., n) as float8_e4m3fn, and the float32 scale (..., 1) of each, a 448th of its largest
    magnitude."""
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=-1, keepdims=True), SMALLEST_SCALE) / LARGEST
    return (wide * (1 / scale)).astype(jnp.float8_e4m3fn), scale


@jax.custom_vjp
def _float8_product(x: jax.Array, matrix: Float8) -> jax.Array:
    """x times the matrix in 8 bit. Its derivative is that of x times the rounded matrix: the rounding of x
    passes dy through."""
    rounded, scale = rounded_rows(x)
    return (_sums(rounded, matrix.rows, x.dtype) * scale * matrix.scale).astype(x.dtype)


_float8_product.defvjp(
    lambda x, matrix: (_float8_product(x, matrix), matrix), lambda matrix, dy: (matrix.product_back(dy), None)
)


def _sums(x: jax.Array, rows: jax.Array, dtype) -> jax.Array:
    """Products of x (..., n) with `rows` (m, n), both of 8-bit numbers: float32 (..., m), summed in float32.

    Beside bfloat16 activations the sums are handed over in bfloat16, half the traffic; no scale has entered
    yet, and it is one rounding of 2⁻⁹ beside two of 2⁻⁴. A GPU before Hopper has no 8-bit units: XLA
    multiplies in 16 bit there.
    """
    handed = jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32
    contracted = (((x.ndim - 1,), (1,)), ((), ()))
    if jax.default_backend() == "gpu":
        sums = jax.lax.dot_general(x, rows, contracted, preferred_element_type=handed)
    else:
        sums = jax.lax.dot_general(x.astype(jnp.float32), rows.astype(jnp.float32), contracted).astype(handed)
    return sums.astype(jnp.float32)


def _transposed(rows: jax.Array) -> jax.Array:
    """`rows` (out, in) transposed, one layer at a time: without the constraint XLA transposes the whole stack
    ahead of the loop over layers, and keeps it beside the other."""
    if jax.default_backend() == "gpu":
        rows = with_layout_constraint(rows, Layout((0, 1)))
    return rows.T
