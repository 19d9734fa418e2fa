"""LoRA as the decoder computes it: linears that read the same input share one thin product.

y = x·W + (x·A)·B + bias, where W and bias are frozen. The matrices A of all linears of one input stand side
by side in one (I, R), R being the sum of their ranks, and each B (R, O) is zero in the rows of the others: a
few kilobytes of zeros in place of kernels that cut the product to pieces. `LoRA.packed` shows an example.

With dropout, y = x·W + (m ⊙ x / (1 − p)·A)·B + bias. Each adapter has a mask m of its own, so that no product
is shared (`LoRA.apart`).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rrs_jax.distributed.mesh import traced_size
from rrs_jax.models.dropout import Dropout, Share
from rrs_jax.models.quantised import product, product_back

# The linears of a layer that read the same input.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
INPUT_OF = {name: group[0] for group in SAME_INPUT for name in group}


@flax.struct.dataclass
class Adapters:
    """Adapters of one layer, or stacked over layers, in the dtype of the hidden states, the scale folded in.

    Attributes:
      a: (I, R) by the first linear of each input in `SAME_INPUT`, where any of them has an adapter; by
        adapter, where they stand apart.
      b: (R, O) by linear, where it has an adapter.
      dropout: masks of one layer, for adapters that stand apart; None drops nothing.
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
        b = [self.b.get(name) for name in names]
        if self.dropout is None:
            return adapted(x, kernels, biases, self.a[INPUT_OF[names[0]]], b)
        share = self.dropout.share(names)
        a = [self.a[adapter] for adapter in share.adapters]
        return adapted_with_dropout(share, x, kernels, biases, a, b, self.dropout)


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
    of_thin = sum(dy @ b_one.T for dy, b_one in zip(cotangents, b, strict=True) if b_one is not None)
    dx = _through_frozen(of_thin @ a.T, cotangents, kernels)
    db = [None if b_one is None else _over_tokens(thin, dy) for dy, b_one in zip(cotangents, b, strict=True)]
    return dx, None, None, _over_tokens(x, of_thin), db


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


def _over_tokens(x: jax.Array, dy: jax.Array) -> jax.Array:
    """xᵀ·dy, (I, O), of (B, T, I) and (B, T, O)."""
    rows = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, dy, (rows, rows))


adapted.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adapted_with_dropout(
    share: Share, x: jax.Array, kernels: list, biases: list, a: list, b: list, dropout: Dropout
) -> list[jax.Array]:
    """Outputs of `adapted`, where each adapter sees x with a mask of its own.

    a: (I, R) of each adapter; b: (R, O) of each linear, or None; dropout: of the layer. The derivative keeps
    x and the thin products, and makes the masks anew.
    """
    return _dropout_forward(share, x, kernels, biases, a, b, dropout)[0]


def _dropout_forward(share: Share, x, kernels, biases, a, b, dropout):
    masks = share.masks(dropout, x.shape[-1], share.threshold)
    thin = [jnp.where(mask, x, 0) @ a_one * share.scale for mask, a_one in zip(masks, a, strict=True)]
    thin = [checkpoint_name(one, "thin") for one in thin]
    arrays = zip(share.owners, kernels, biases, b, strict=True)
    outputs = [_output(x, None if owner is None else thin[owner], *rest) for owner, *rest in arrays]
    return outputs, (x, thin, kernels, a, b, dropout)


def _dropout_backward(share: Share, residuals, cotangents):
    x, thin, kernels, a, b, dropout = residuals
    of_thin = [jnp.zeros_like(one) for one in thin]
    for owner, dy, b_one in zip(share.owners, cotangents, b, strict=True):
        if owner is not None:
            of_thin[owner] = of_thin[owner] + dy @ b_one.T
    of_thin = [one * share.scale for one in of_thin]
    # Behind the barrier the masks are others to XLA than the forward pass's, which it would keep for them.
    threshold, of_thin = jax.lax.optimization_barrier((jnp.asarray(share.threshold), of_thin))
    masks = share.masks(dropout, x.shape[-1], threshold)
    parts = list(zip(masks, of_thin, a, strict=True))
    dx = sum(jnp.where(mask, one @ a_one.T, 0) for mask, one, a_one in parts)
    da = [_over_tokens(jnp.where(mask, x, 0), one) for mask, one, _ in parts]
    db = [
        None if owner is None else _over_tokens(thin[owner], dy)
        for owner, dy in zip(share.owners, cotangents, strict=True)
    ]
    return _through_frozen(dx, cotangents, kernels), None, None, da, db, None


adapted_with_dropout.defvjp(_dropout_forward, _dropout_backward)
