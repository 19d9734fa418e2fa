"""Equations of the paper (Yang et al. 2025, sections 3 and 4), in its order: arrays in, arrays out.

Letters in shapes: N questions of one kind, B rows of a step, D features of the last hidden state, V words of
the vocabulary, K refusal tokens, L layers, I and O inputs and outputs of a linear, R rank of its adapter.

    eq. 1         refusal_row          w_40
    eq. 5         contribution         w_40,p · Δv_p
    eq. 9         mean_change          ΔV̄
    eq. 10        select, safety_features, safety_vector   S and ΔV̄ˢ
    eq. 11        draw_prompts         t′
    eq. 12        targets              V^tgt
    data term     squared_distance     ‖V^pred − V^tgt‖²
    eq. 13        weight_change, adapter_change            ‖Δθ‖²
    L(θ)          objective

Equations 6 to 8 and f_θ(d, t′) of equation 11 are the model itself: `rrs_jax.frozen.extraction.extract_reps`.

Shapes are asserted where a wrong one would broadcast without a word; such a mistake raises AssertionError.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.errors import UserError

SUM_PARTS = 16  # pieces in which the long sum of a Gram matrix is taken
AUTHORS_SIGN_SHARE = 51  # percent for which the authors' program goes by sign


class SafetyVector(NamedTuple):
    """Equations 5, 9 and 10 for one set of representations.

    Attributes:
      delta_mean: ΔV̄, float32 (D,), the mean change from benign to refused.
      contribution: w_40,p · Δv̄_p, float32 (D,), what each feature adds to the refusal token's logit.
      vector: ΔV̄ˢ, float32 (D,): `delta_mean` on the safety features, 0 elsewhere.
      selected: S, bool (D,), the safety features.
    """

    delta_mean: jax.Array
    contribution: jax.Array
    vector: jax.Array
    selected: jax.Array

    @property
    def positive_share(self) -> float:
        """Share of the features with a positive contribution, 0 to 1; about 0.51 in the paper."""
        return float(np.mean(np.asarray(self.contribution) > 0))

    @property
    def delta_logit(self) -> float:
        """ΔL_40 of equation 5: the change of the refusal token's logit by the whole of ΔV̄."""
        return float(np.sum(np.asarray(self.contribution), dtype=np.float64))

    @property
    def delta_logit_selected(self) -> float:
        """The change of the refusal token's logit by ΔV̄ˢ."""
        return float(np.sum(np.asarray(self.contribution)[np.asarray(self.selected)], dtype=np.float64))


def refusal_row(lm_head: jax.Array, token_ids: jax.Array) -> jax.Array:
    """w_40 of equation 1, float32 (D,): the refusal token's row of the output head.

    lm_head (V, D); token_ids int (several,). The paper has one token, "I", which is 40 in the Qwen family.
    Departure: of several tokens, the mean of their rows.
    """
    return jnp.mean(lm_head[jnp.asarray(token_ids)].astype(jnp.float32), axis=0)


def contribution(row: jax.Array, change: jax.Array) -> jax.Array:
    """Summands of equation 5, float32 (D,): w_40,p · Δv_p, what each feature adds to the refusal token's
    logit.

    row (D,), change (D,). Their sum is ΔL_40.
    """
    chex.assert_rank(row, 1)
    chex.assert_equal_shape([row, change])
    return row.astype(jnp.float32) * change


def mean_change(harmful_refusal: jax.Array, benign: jax.Array) -> jax.Array:
    """ΔV̄ of equation 9, float32 (D,): the mean representation of refused harmful questions minus that of
    benign ones.

    harmful_refusal (N, D), under t̃; benign (M, D), under t. Departure: N and M may differ, since the two
    means are taken apart. Each is the mean of differences to a rough mean: sums of many large float32 numbers
    would lose the digits that the small difference needs.
    """
    chex.assert_rank([harmful_refusal, benign], 2)
    chex.assert_equal_shape_suffix([harmful_refusal, benign], 1)
    refused, benign = harmful_refusal.astype(jnp.float32), benign.astype(jnp.float32)
    rough = jnp.mean(benign, axis=0)
    return jnp.mean(refused - rough, axis=0) - jnp.mean(benign - rough, axis=0)


def select(contributions: jax.Array, top_m: float | str, rule: str = "count") -> jax.Array:
    """S of equation 10, bool (D,): the `top_m` percent of the features that contribute most; ties go to the
    first.

    "positive" keeps every feature that raises the logit, which the paper calls approximately the top 51 %.
    Departure: with the `rule` "authors" as in the authors' program. Contributions are compared in float16;
      51 keeps every feature whose contribution is not below 0; of other shares the lowest features are left
      out, so that ties go to the last.
    Raises UserError for a `top_m` that is neither above 0 and at most 100, nor "positive".
    """
    chex.assert_rank(contributions, 1)
    if top_m == "positive":
        return contributions > 0
    if isinstance(top_m, bool) or not isinstance(top_m, int | float) or not 0 < top_m <= 100:
        raise UserError(
            f"rrs.top_m: {top_m!r} is no share of the features; give percent above 0 up to 100, or"
            ' "positive".'
        )
    count = round(top_m / 100 * contributions.shape[0])
    if rule == "authors":
        half = contributions.astype(jnp.float16)
        if top_m == AUTHORS_SIGN_SHARE:
            return half >= 0
        order = jnp.flip(jnp.argsort(half, stable=True))
    else:
        order = jnp.argsort(-contributions, stable=True)
    return jnp.zeros(contributions.shape, bool).at[order[:count]].set(True)


@functools.partial(jax.jit, static_argnames=("top_m", "rule", "dtype"))
def safety_features(
    delta_mean: jax.Array,
    lm_head: jax.Array,
    token_ids: jax.Array,
    top_m: float | str,
    rule: str = "count",
    dtype: str = "float32",
) -> SafetyVector:
    """Equations 5 and 10 for a mean change ΔV̄ (D,): contributions, safety features S and safety vector
    ΔV̄ˢ.

    top_m, rule: as in `select`. Departure: with `dtype` "bfloat16" ΔV̄ and its contributions are rounded to
      it, as in the authors' program; the arrays stay float32.
    """
    delta_mean = _rounded(delta_mean, dtype)
    contributions = _rounded(contribution(refusal_row(lm_head, token_ids), delta_mean), dtype)
    selected = select(contributions, top_m, rule)
    return SafetyVector(delta_mean, contributions, jnp.where(selected, delta_mean, 0), selected)


@functools.partial(jax.jit, static_argnames=("top_m", "rule", "dtype"))
def safety_vector(
    harmful_refusal: jax.Array,
    benign: jax.Array,
    lm_head: jax.Array,
    token_ids: jax.Array,
    top_m: float | str = 51.0,
    rule: str = "count",
    dtype: str = "float32",
) -> SafetyVector:
    """Equations 9, 5 and 10 as one function on the device, which reads the refusal token's row of `lm_head`.

    harmful_refusal (N, D), benign (M, D), lm_head (V, D), token_ids int (several,); `top_m` in percent, or
    "positive"; rule and dtype as in `safety_features`.
    Raises UserError for a `top_m` outside its range.
    """
    delta_mean = mean_change(harmful_refusal, benign)
    return safety_features(delta_mean, lm_head, token_ids, top_m, rule, dtype)


def draw_prompts(random: np.random.Generator, samples: int, prompts: int, group: int = 1) -> np.ndarray:
    """t′ of equation 11, int (samples,): for every question the place of one of the pool's `prompts` texts.

    The paper draws one "in each step". Each question of a step draws its own here, anew in each epoch.
    Departure: with a `group` above 1 so many questions, one behind the other, draw without replacement, as in
      the authors' program; where they are more than the texts, a text comes again when all have come.
    """
    if group == 1:
        return random.integers(prompts, size=samples)
    shuffled = random.permuted(np.tile(np.arange(prompts), (-(-samples // group), 1)), axis=1)
    return shuffled[:, np.arange(group) % prompts].ravel()[:samples]


def targets(
    representations: np.ndarray, harmful: np.ndarray, vector: np.ndarray, dtype: str = "float32"
) -> np.ndarray:
    """V^tgt of equation 12, float32 (N, D): V0(d, t) plus the safety vector for harmful questions, minus it
    for benign.

    representations (N, D), under t; harmful bool (N,); vector (D,), or one for each question (N, D).
    Departure: with `dtype` "bfloat16" both summands and the sum are rounded to it, as in the authors'
      program.
    """
    chex.assert_rank(representations, 2)
    chex.assert_shape(harmful, representations.shape[:1])
    chex.assert_shape(vector, representations.shape[-np.ndim(vector) :])
    narrow = jnp.dtype(dtype)
    sign = np.where(harmful, np.float32(1), np.float32(-1))[:, None]
    start, change = (np.asarray(array, np.float32).astype(narrow) for array in (representations, vector))
    return (start + sign.astype(narrow) * change).astype(np.float32)


def squared_distance(predicted: jax.Array, target: jax.Array, reduction: str = "sum") -> jax.Array:
    """Summands of L(θ)'s data term, ‖V^pred − V^tgt‖² of each question: (B,) for (B, D), (B, P) for P
    positions (B, P, D).

    Departure: `reduction` "mean" divides by D, as the authors' program does; "sum" is the equation as
      printed.
    """
    chex.assert_equal_shape([predicted, target])
    difference = predicted - target
    reduce = {"sum": jnp.sum, "mean": jnp.mean}[reduction]
    return reduce(difference * difference, axis=-1)


def weight_change(pairs: Iterable[tuple[jax.Array, jax.Array, float]]) -> jax.Array:
    """‖Δθ‖² of equation 13 over the adapted weight matrices, a float32 scalar, exactly.

    pairs: A (L, I, R), B (L, R, O) and scale s of each adapted linear, whose weights have moved by s·A·B
    since training starts at B = 0. ‖s·A·B‖²_F = s²·tr((AᵀA)(BBᵀ)) needs R² numbers and never a whole matrix.
    """
    return sum((scale**2 * _product_norm(a, b) for a, b, scale in pairs), jnp.float32(0))


def adapter_change(adapters, initial) -> jax.Array:
    """Squared distance of the adapters' own numbers from their initial ones, a float32 scalar; two trees
    alike.

    The other reading of equation 13, where θ are the trained numbers A and B (`penalty.space=lora`).
    """
    chex.assert_trees_all_equal_shapes(adapters, initial)
    distances = jax.tree.map(lambda now, start: jnp.sum((now - start) ** 2), adapters, initial)
    return sum(jax.tree.leaves(distances), jnp.float32(0))


def objective(
    distances: jax.Array, questions: jax.Array, penalty: jax.Array, penalty_weight: jax.Array
) -> jax.Array:
    """L(θ), a scalar: the data term over the step's questions plus the penalty of equation 13.

    distances: sum of the rows' `squared_distance`; questions: how many they are; penalty: ‖Δθ‖². Departures:
    the data term is a mean over the step's questions in place of a sum, so that it does not depend on the
    batch size, and the penalty has a weight, 1 by default.
    """
    return distances / questions + penalty_weight * penalty


def _rounded(x: jax.Array, dtype: str) -> jax.Array:
    """float32 numbers rounded to another floating type. A cast there and back is one that XLA may leave
    out."""
    if dtype == "float32":
        return x
    kind = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)


@jax.custom_vjp
def _product_norm(a: jax.Array, b: jax.Array) -> jax.Array:
    """‖A·B‖²_F summed over layers; a (L, I, R), b (L, R, O). Its derivative, 2·A·(BBᵀ) and 2·(AᵀA)·B, takes
    half the products that JAX would make for it."""
    return _product_norm_forward(a, b)[0]


def _product_norm_forward(a, b):
    chex.assert_rank([a, b], 3)
    chex.assert_shape(b, (a.shape[0], a.shape[2], None))
    gram_a, gram_b = _gram(a), _gram(jnp.swapaxes(b, 1, 2))
    return jnp.sum(gram_a * gram_b), (a, b, gram_a, gram_b)


def _product_norm_gradient(residuals, cotangent):
    a, b, gram_a, gram_b = residuals
    da = jnp.einsum("LIR,LRr->LIr", a, 2 * cotangent * gram_b, precision="highest")
    db = jnp.einsum("LRr,LrO->LRO", 2 * cotangent * gram_a, b, precision="highest")
    return da, db


_product_norm.defvjp(_product_norm_forward, _product_norm_gradient)


def _gram(x):
    """XᵀX of each layer, x (L, I, R). In parts of the sum: a GPU gives a product of so few numbers to one
    processor, which takes the longer the more there is to sum."""
    parts = math.gcd(x.shape[1], SUM_PARTS)
    x = x.reshape(len(x), parts, -1, x.shape[2])
    # A GPU's default of TF32 has 3 digits.
    return jnp.einsum("LpIR,LpIr->LpRr", x, x, precision="highest").sum(axis=1)
