"""Linear probes of states: how well harmful and benign questions are told apart by one direction.

NumPy alone, so that a report can use it without a model.
"""

from collections.abc import Hashable, Sequence

import numpy as np

SHRINKAGE = 0.1  # ridge, as a share of the mean variance of a feature
FOLDS = 5


def fit_probe(inputs: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, float]:
    """Fits a ridge regression of `signs` (N,), +1 or -1, on states (N, D).

    Returns the weights, float64 (D,), and the bias. Both classes weigh the same, however many they are.
    """
    inputs = np.asarray(inputs, np.float64)
    means = [inputs[signs == sign].mean(axis=0) for sign in (1, -1)]
    middle = (means[0] + means[1]) / 2
    share = np.where(signs > 0, np.sum(signs > 0), np.sum(signs < 0))
    centred = (inputs - middle) / np.sqrt(2 * share)[:, None]
    ridge = SHRINKAGE * np.sum(centred**2) / inputs.shape[1]
    if len(centred) < inputs.shape[1]:  # (XᵀX + λ)⁻¹Xᵀc = Xᵀ(XXᵀ + λ)⁻¹c: the smaller matrix is solved
        gram = centred @ centred.T + ridge * np.eye(len(centred))
        weights = centred.T @ np.linalg.solve(gram, np.sign(signs) / np.sqrt(2 * share))
    else:
        covariance = centred.T @ centred + ridge * np.eye(inputs.shape[1])
        weights = np.linalg.solve(covariance, (means[0] - means[1]) / 2)
    return weights, float(-middle @ weights)


def probe_scores(inputs: np.ndarray, signs: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Scores every state by a probe that was fitted without the state's group; float64 (N,), above 0 for +1.

    Groups go by turns into `FOLDS` parts. A state that only a probe of one class could judge scores NaN.
    """
    folds = {name: i % FOLDS for i, name in enumerate(dict.fromkeys(groups))}
    fold = np.array([folds[name] for name in groups])
    scores = np.full(len(signs), np.nan)
    for held in range(FOLDS):
        rest = fold != held
        if len(set(signs[rest])) == 2:
            weights, bias = fit_probe(inputs[rest], signs[rest])
            scores[~rest] = inputs[~rest] @ weights + bias
    return scores


def probe_accuracy(inputs: np.ndarray, signs: np.ndarray, pairs: Sequence[Hashable]) -> float:
    """Share of states, 0 to 1, on the right side of a probe fitted without their pair; both classes weigh
    the same."""
    right = probe_scores(inputs, signs, pairs) * signs > 0
    return float(np.mean([right[signs == sign].mean() for sign in (1, -1)]))
