"""What RRS needs of the frozen model: representations, safety vectors, and the targets made of them."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.frozen.extraction import (
    Representations,
    SafetyVector,
    load_representations,
    premise,
    safety_vector,
    save_representations,
)
from rrs_jax.progress import say
from rrs_jax.run.training_set import kept_as_they_are


@dataclasses.dataclass(frozen=True)
class Materials:
    """What `extract` wrote, in the order of the run's N samples.

    Attributes:
      start: float32 (N, D), V0(d, t), with `rrs.read_share` on the way to what the question has in writing.
      refused: float32 (N, D), V0(d, t̃) of harmful samples, 0 elsewhere.
      vectors: float32 (N, D), the safety vector of each sample; the same for all but with
        `rrs.target=category`.
      hinge_scale: float32 (N,), the vector's length over the change of the refusal token's logit that it
        makes.
      kept_prompts: what `strategies.rrs.RRS` calls `kept`; None where no sample is kept.
      deeper: float32 (N, K - 1, D), the frozen model's states behind each tail's tokens; None for one
        position.
      tails, positions: see `strategies.rrs.RRS`.
    """

    start: np.ndarray
    refused: np.ndarray
    vectors: np.ndarray
    hinge_scale: np.ndarray
    kept_prompts: np.ndarray | None
    deeper: np.ndarray | None
    tails: list | None
    positions: np.ndarray | None


def extract(work) -> dict:
    """Equations 6 to 10 and whether the method's premise holds; writes `RUN/representations.safetensors`."""
    rrs, token_ids = work.config.rrs, work.refusal_ids
    harmful, benign = np.flatnonzero(work.harmful), np.flatnonzero(work.mirrored)
    kept, keeping = np.flatnonzero(work.kept), np.flatnonzero(kept_as_they_are(work))
    tails = _tails(work, rrs.positions - 1) if rrs.positions > 1 else None

    parts = [(harmful, PROMPT_T), (harmful, rrs.refusal_prompt), (benign, PROMPT_T), (kept, PROMPT_T)]
    prompts = [work.prompt(i, text) for indices, text in parts for i in indices]
    prompts += [work.pool_prompt(i, place) for i in keeping for place in range(work.pool_size)]
    read = _read_prompts(work, keeping) if rrs.read_share else []
    prompts += read
    if tails is not None:
        prompts += _deeper_prompts(work, keeping, tails)
    states = work.representations(prompts)

    counts = [len(indices) for indices, _ in parts] + [len(keeping) * work.pool_size, len(read)]
    *parts, by_prompt, read, deeper = np.split(states, np.cumsum(counts))
    representations, kept_states = Representations(*parts[:3]), parts[3]
    head_row = np.mean(
        [np.asarray(work.vanilla.head_row(token)) for token in token_ids], axis=0, dtype=np.float32
    )
    reshape = _reshape(rrs, np.concatenate([representations.benign, kept_states]))
    vector = safety_vector(
        representations.harmful_refusal, representations.benign, head_row, rrs.top_m, reshape
    )
    extras = {"kept": kept_states, "head_row": head_row}
    if len(read):
        extras["read"], by_prompt = (
            read[: len(work.harmful)],
            _towards(by_prompt, read[len(work.harmful) :], rrs.read_share),
        )
    if len(keeping):
        extras["kept_prompts"] = by_prompt.reshape(len(keeping), work.pool_size, -1)
    if tails is not None:
        extras |= {"tails": tails, "deeper": deeper}
    categories = _categories(work) if rrs.target == "category" else []
    if categories:
        chosen = [_of_category(work, representations, name) for name in categories]
        each = [safety_vector(refused, own, head_row, rrs.top_m, reshape).vector for refused, own in chosen]
        extras["category_vectors"] = np.stack(each)
    save_representations(
        work.folder.representations,
        representations,
        vector,
        {
            "model": work.config.model.path,
            "prompts": [PROMPT_T, rrs.refusal_prompt],
            "top_m": rrs.top_m,
            "refusal_token_id": token_ids[0],
            "categories": json.dumps(categories),
        },
        {name: array for name, array in extras.items() if array.size},
    )
    return _facts(work, vector, premise(work.vanilla, representations, token_ids))


def _facts(work, vector: SafetyVector, shares: dict[str, float]) -> dict:
    """For the stage's mark; also told on the terminal."""
    first = {name: round(100 * share, 1) for name, share in shares.items()}
    facts = {
        "refusal_token_id": work.refusal_ids[0],
        "positive_percent": round(100 * vector.positive_share, 1),
        "delta_logit": round(vector.delta_logit, 2),
        "delta_logit_selected": round(vector.delta_logit_selected, 2),
        "first_token_percent": {
            "harmful_refusal_prompt": first["harmful_refusal"],
            "harmful": first["harmful"],
            "benign": first["benign"],
        },
    }
    named = " or ".join(map(repr, work.config.rrs.refusal_tokens))
    say(
        f"premise: {named} (id {', '.join(map(str, work.refusal_ids))}) comes first for"
        f" {first['harmful_refusal']} % of harmful questions under the refusal prompt, {first['harmful']} %"
        f" under t, {first['benign']} % of benign ones; {facts['positive_percent']} % of the features raise"
        f" its logit, by {facts['delta_logit']} in all, {facts['delta_logit_selected']} after selection"
    )
    return facts


def read_materials(work) -> Materials:
    """What `extract` wrote for this run."""
    representations, arrays, _ = load_representations(work.folder.representations)
    width, count = representations.harmful.shape[1], len(work.harmful)
    start, refused = np.zeros((2, count, width), np.float32)
    start[work.harmful], start[work.mirrored] = representations.harmful, representations.benign
    if work.kept.any():
        start[work.kept] = arrays["kept"]
    if "read" in arrays:
        start = _towards(start, arrays["read"], work.config.rrs.read_share)
    refused[work.harmful] = representations.harmful_refusal
    vectors = np.broadcast_to(arrays["safety_vector"], (count, width))
    if "category_vectors" in arrays:
        place = {name: i for i, name in enumerate(_categories(work))}
        vectors = arrays["category_vectors"][[place.get(name, 0) for name in work.categories]]
    gains = vectors @ arrays["head_row"]
    with np.errstate(divide="ignore", invalid="ignore"):
        hinge_scale = np.linalg.norm(vectors, axis=1) / gains
    kept_prompts, deeper = arrays.get("kept_prompts"), arrays.get("deeper")
    tails = positions = None
    if "tails" in arrays:
        lengths = (arrays["tails"] >= 0).sum(axis=1)
        tails = [[row[:length].tolist()] for row, length in zip(arrays["tails"], lengths, strict=True)]
        positions = np.arange(arrays["tails"].shape[1] + 1) <= lengths[:, None]
        moved, later = np.flatnonzero(~kept_as_they_are(work)), arrays["tails"].shape[1]
        split = len(moved) * later
        own, deeper = deeper[split:], _place(deeper[:split].reshape(len(moved), later, width), moved, count)
        if kept_prompts is not None:
            own = own.reshape(*kept_prompts.shape[:2], later, width)
            kept_prompts = np.concatenate([kept_prompts[:, :, None], own], axis=2)
    return Materials(start, refused, vectors, hinge_scale, kept_prompts, deeper, tails, positions)


def make_targets(config, materials: Materials, harmful: np.ndarray) -> np.ndarray:
    """(N, D), or (N, K, D) for K positions. Equation 12, or with `rrs.target=own` for harmful samples the
    selected features of V0(d, t̃). Rows of kept and hinged samples are not read.

    Raises UserError for a hinge along a vector that does not raise the refusal token's logit.
    """
    targets = targets_of(materials.start, harmful, materials.vectors)
    if config.rrs.target == "own":
        selected = materials.vectors != 0
        own = np.where(selected, materials.refused, materials.start)
        targets = np.where(harmful[:, None], own, targets)
    if config.rrs.benign_target == "hinge" and not (materials.hinge_scale[~harmful] > 0).all():
        raise UserError(
            "rrs.benign_target: the safety vector does not raise the refusal token's logit, so that hinge has"
            " no direction; give keep or mirror, or another rrs.top_m."
        )
    if materials.deeper is None:
        return targets
    return np.concatenate([targets[:, None], materials.deeper], axis=1)


def targets_of(representations: np.ndarray, harmful: np.ndarray, safety_vector: np.ndarray) -> np.ndarray:
    """Equation 12: V0(d, t) (N, D) moved by the safety vector, (D,) or one a sample (N, D), towards refusal
    where `harmful` (N,), else away."""
    sign = np.where(harmful, np.float32(1), np.float32(-1))[:, None]
    return np.asarray(representations, np.float32) + sign * np.asarray(safety_vector, np.float32)


def whiten(delta: np.ndarray, benign: np.ndarray, shrinkage: float) -> np.ndarray:
    """Σ⁻¹δ at δ's length, Σ the covariance of `benign` (N, D) drawn by `shrinkage` towards a multiple of the
    identity: the direction that best tells refused from benign, and not along what benign questions differ
      in."""
    centred = np.asarray(benign, np.float64) - np.mean(benign, axis=0, dtype=np.float64)
    covariance = centred.T @ centred / max(len(centred) - 1, 1)
    width = len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / width * np.eye(width)
    direction = np.linalg.solve(shrunk, np.asarray(delta, np.float64))
    return (direction * np.linalg.norm(delta) / np.linalg.norm(direction)).astype(np.float32)


def project_out(delta: np.ndarray, benign: np.ndarray, directions: int) -> np.ndarray:
    """δ without its part along the first principal directions of `benign` (N, D)."""
    centred = np.asarray(benign, np.float64) - np.mean(benign, axis=0, dtype=np.float64)
    _, _, principal = np.linalg.svd(centred, full_matrices=False)
    principal = principal[:directions]
    return (delta - principal.T @ (principal @ np.asarray(delta, np.float64))).astype(np.float32)


def _reshape(rrs, benign: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    if rrs.whiten is not None:
        return lambda delta: whiten(delta, benign, rrs.whiten)
    if rrs.project:
        if rrs.project >= len(benign):
            raise UserError(
                f"rrs.project: is {rrs.project} with {len(benign)} benign questions; give fewer directions."
            )
        return lambda delta: project_out(delta, benign, rrs.project)
    return None


def _categories(work) -> list[str]:
    """Those of the moved samples. Raises UserError where one lacks harmful or benign questions."""
    moved = {
        kind: {work.categories[i] for i in np.flatnonzero(mask)}
        for kind, mask in (("harmful", work.harmful), ("benign", work.mirrored))
    }
    lone = sorted(moved["harmful"] ^ moved["benign"])
    if lone:
        raise UserError(
            f"rrs.target: category needs harmful and benign questions of each, which {', '.join(lone)} lacks;"
            " complete the manifest or give mean or own."
        )
    return sorted(moved["harmful"])


def _of_category(work, representations: Representations, name: str) -> tuple[np.ndarray, np.ndarray]:
    of_it = np.array([category == name for category in work.categories])
    return representations.harmful_refusal[of_it[work.harmful]], representations.benign[of_it[work.mirrored]]


def _tails(work, length: int) -> np.ndarray:
    """int32 (N, length): how the frozen model begins, a harmful question's refusal under t̃ and other
    questions' answer under t; -1 past an answer's end."""
    texts = [work.config.rrs.refusal_prompt if harmful else PROMPT_T for harmful in work.harmful]
    answers = work.responses([work.prompt(i, text) for i, text in enumerate(texts)], length)
    tails = np.full((len(answers), length), -1, np.int32)
    for row, answer in zip(tails, answers, strict=True):
        row[: len(answer)] = answer
    return tails


def _read_prompts(work, keeping: np.ndarray) -> list:
    """Every question in writing beside t, then the kept samples' beside each text of the pool."""
    prompts = [work.read_prompt(i, PROMPT_T) for i in range(len(work.harmful))]
    texts = [work.pool_text(place) for place in range(work.pool_size)]
    return prompts + [work.read_prompt(i, text) for i in keeping for text in texts]


def _towards(heard: np.ndarray, read: np.ndarray, share: float) -> np.ndarray:
    return heard + np.float32(share) * (read - heard)


def _deeper_prompts(work, keeping: np.ndarray, tails: np.ndarray) -> list:
    """Prompts with the first one, two, ... tokens of their tails: the moved samples' under t̃ or t, then the
    kept samples' under each of the pool. Past an answer's end the whole answer stands in; `positions` hides
    it."""
    texts = [work.config.rrs.refusal_prompt if harmful else PROMPT_T for harmful in work.harmful]
    moved = np.setdiff1d(np.arange(len(texts)), keeping)
    bases = [(i, work.prompt(i, texts[i])) for i in moved]
    bases += [(i, work.pool_prompt(i, place)) for i in keeping for place in range(work.pool_size)]
    found = []
    for i, (ids, offsets, counts) in bases:
        tail = [int(token) for token in tails[i] if token >= 0]
        found += [(ids + tail[: j + 1], offsets, counts) for j in range(tails.shape[1])]
    return found


def _place(values: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """`values` at `indices` of an array of zeros (count, ...)."""
    placed = np.zeros((count, *values.shape[1:]), np.float32)
    placed[indices] = values
    return placed
