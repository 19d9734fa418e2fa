"""LoRA as the decoder computes it: linears that read the same input share one thin product.

y = x·W + (x·A)·B + bias, where W and bias are frozen. The matrices A of all linears of one input stand side
by side in one (I, R), R being the sum of their ranks, and each B (R, O) is zero in the rows of the others: a
few kilobytes of zeros in place of kernels that cut the product to pieces. `LoRA.packed` shows an example.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rrs_jax.distributed.mesh import traced_size
from rrs_jax.models.quantised import product, product_back

# The linears of a layer that read the same input.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
INPUT_OF = {name: group[0] for group in SAME_INPUT for name in group}


@flax.struct.dataclass
class Adapters:
    """Adapters of one layer, or stacked over layers, in the dtype of the hidden states, the scale folded in.

    Attributes:
      a: (I, R) by the first linear of each input in `SAME_INPUT`, where any of them has an adapter.
      b: (R, O) by linear, where it has an adapter.
    """

    a: dict[str, jax.Array]
    b: dict[str, jax.Array]

    def apply(self, names: tuple[str, ...], x: jax.Array, linears) -> list[jax.Array]:
        """Outputs of the linears `names`, which read x."""
        if not any(name in self.b for name in names):
            return [linear(x) for linear in linears]
        kernels = [linear.matrix for linear in linears]
        biases = [None if linear.bias is None else linear.bias[...] for linear in linears]
        return adapted(x, kernels, biases, self.a[INPUT_OF[names[0]]], [self.b.get(name) for name in names])


@jax.custom_vjp
def adapted(x: jax.Array, kernels: list, biases: list, a: jax.Array, b: list) -> list[jax.Array]:
    """Outputs of several frozen linears with adapters that read x (B, T, I). A kernel may have 8 bit, a
    linear's b may be None.

    The derivative keeps x and the thin product alone, and has none for the frozen arrays.
    """
    return _forward(x, kernels, biases, a, b)[0]


def _forward(x, kernels, biases, a, b):
    thin = checkpoint_name(x @ a, "thin")
    outputs = [_output(x, thin, *arrays) for arrays in zip(kernels, biases, b, strict=True)]
    return outputs, (x, thin, kernels, a, b)


def _output(x, thin, kernel, bias, b):
    if b is None:
        y = product(x, kernel)
        return y if bias is None else jax.lax.optimization_barrier(y) + bias
    start = thin @ b if bias is None else thin @ b + bias
    # The barrier makes this the matrix that cuBLAS adds the large product to, rather than the reverse.
    return product(x, kernel) + jax.lax.optimization_barrier(start)


def _backward(residuals, cotangents):
    x, thin, kernels, a, b = residuals
    rows = tuple(range(x.ndim - 1))
    of_thin = sum(dy @ b_one.T for dy, b_one in zip(cotangents, b, strict=True) if b_one is not None)
    dx = of_thin @ a.T
    if (
        traced_size("tensor") > 1
    ):  # each device has a part of each product: added up first, they are sent once
        dx = sum(product_back(dy, kernel) for dy, kernel in zip(cotangents, kernels, strict=True)) + dx
    else:
        dx = jax.lax.optimization_barrier(dx)
        for dy, kernel in zip(cotangents, kernels, strict=True):
            dx = product_back(dy, kernel) + dx
    da = jnp.tensordot(x, of_thin, (rows, rows))
    db = [
        None if b_one is None else jnp.tensordot(thin, dy, (rows, rows))
        for dy, b_one in zip(cotangents, b, strict=True)
    ]
    return dx, None, None, da, db


adapted.defvjp(_forward, _backward)
