"""LoRA as the decoder computes it: linears that read the same input share one thin product.

y = x·W + (x·A)·B + bias, where W and bias are frozen. The matrices A of all linears of one input stand side
by side in one (I, R), R being the sum of their ranks, and each B (R, O) is zero in the rows of the others: a
few kilobytes of zeros in place of kernels that cut the product to pieces. `LoRA.packed` shows an example.

With dropout, y = x·W + ((m ⊙ x)·A)·B / (1 − p) + bias. Each adapter has a mask m of its own
(`rrs_jax.models.thin_products`); B holds the 1 / (1 − p).
"""

import functools

import flax.struct
import jax
from jax.ad_checkpoint import checkpoint_name

from rrs_jax.distributed.mesh import traced_size
from rrs_jax.models.dropout import Dropout
from rrs_jax.models.quantised import product, product_back
from rrs_jax.models.thin_products import input_gradient, matrix_gradient, over_tokens, thin_product

# The linears of a layer that read the same input.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
GROUP_OF = {name: group for group in SAME_INPUT for name in group}


@flax.struct.dataclass
class Adapters:
    """Adapters of one layer, or stacked over layers, in the dtype of the hidden states, the scale folded in.

    Attributes:
      a: (I, R) by the first linear of each input in `SAME_INPUT`, where any of them has an adapter.
      b: (R, O) by linear, where it has an adapter.
      dropout: masks of one layer; None drops nothing.
    """

    a: dict[str, jax.Array]
    b: dict[str, jax.Array]
    dropout: Dropout | None = None

    def apply(self, names: tuple[str, ...], x: jax.Array, linears) -> list[jax.Array]:
        """Outputs of the linears `names`, which read x."""
        if not any(name in self.b for name in names):
            return [linear(x) for linear in linears]
        kernels = [linear.matrix for linear in linears]
        biases = [None if linear.bias is None else linear.bias[...] for linear in linears]
        b, group = [self.b.get(name) for name in names], GROUP_OF[names[0]]
        numbers = () if self.dropout is None else self.dropout.numbers(group)
        return adapted(numbers, x, kernels, biases, self.a[group[0]], b, self.dropout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adapted(
    numbers: tuple[int, ...],
    x: jax.Array,
    kernels: list,
    biases: list,
    a: jax.Array,
    b: list,
    dropout: Dropout | None = None,
) -> list[jax.Array]:
    """Outputs of several frozen linears with adapters that read x (B, T, I). A kernel may have 8 bit, a
    linear's b may be None.

    The derivative keeps x and the thin product alone, makes masks anew, and has none for the frozen arrays.

    numbers: of the adapters in `a` among those of `dropout`, the layer's masks.
    """
    return _forward(numbers, x, kernels, biases, a, b, dropout)[0]


def _forward(numbers, x, kernels, biases, a, b, dropout):
    thin = checkpoint_name(thin_product(numbers, x, a, dropout), "thin")
    outputs = [_output(x, thin, *arrays) for arrays in zip(kernels, biases, b, strict=True)]
    return outputs, (x, thin, kernels, a, b, dropout)


def _output(x, thin, kernel, bias, b):
    if b is None:
        y = product(x, kernel)
        return y if bias is None else jax.lax.optimization_barrier(y) + bias
    start = thin @ b if bias is None else thin @ b + bias
    # The barrier makes this the matrix that cuBLAS adds the large product to, rather than the reverse.
    return product(x, kernel) + jax.lax.optimization_barrier(start)


def _backward(numbers, residuals, cotangents):
    x, thin, kernels, a, b, dropout = residuals
    of_thin = sum(dy @ b_one.T for dy, b_one in zip(cotangents, b, strict=True) if b_one is not None)
    dx = _through_frozen(input_gradient(numbers, a, of_thin, dropout), cotangents, kernels)
    da = matrix_gradient(numbers, x, of_thin, dropout)
    db = [None if b_one is None else over_tokens(thin, dy) for dy, b_one in zip(cotangents, b, strict=True)]
    return dx, None, None, da, db, None


def _through_frozen(dx: jax.Array, cotangents: list, kernels: list) -> jax.Array:
    """The input's gradient: dx, that through the adapters, and those through the frozen matrices."""
    pairs = zip(cotangents, kernels, strict=True)
    if (
        traced_size("tensor") > 1
    ):  # each device has a part of each product: added up first, they are sent once
        return sum(product_back(dy, kernel) for dy, kernel in pairs) + dx
    dx = jax.lax.optimization_barrier(dx)
    for dy, kernel in pairs:
        dx = product_back(dy, kernel) + dx
    return dx


adapted.defvjp(_forward, _backward)
