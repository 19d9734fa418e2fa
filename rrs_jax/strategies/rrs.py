"""Reshaping the representation space (section 4 of the paper). What it can be given beyond: `variants/`."""

import dataclasses
import json

import jax
import numpy as np
from flax import nnx

from rrs_jax import equations
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.models.batch import Batch
from rrs_jax.progress import say
from rrs_jax.strategies.extracted import Extracted
from rrs_jax.strategies.samples import Samples, check_kinds
from rrs_jax.strategies.variants import Materials, chosen_variants


@dataclasses.dataclass(frozen=True)
class RRS:
    """Squared distance of each representation to its frozen target: the data term of L(θ).

    Attributes:
      targets: equation 12, float32 (N, D), one row a sample.
      reduction: "sum" over features, as the equation is printed, or "mean".
    """

    targets: np.ndarray
    reduction: str = "sum"
    tails: None = None

    def __post_init__(self):
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is sum or mean, not {self.reduction!r}")

    @property
    def static(self) -> tuple:
        return (self.reduction,)

    def examples(
        self, indices: np.ndarray, prompts: np.ndarray | None = None, tails: np.ndarray | None = None
    ) -> dict:
        return {"target": self.targets[indices]}

    def row_losses(
        self,
        model: nnx.Module,
        batch: Batch,
        audio_bank: jax.Array,
        examples: dict[str, jax.Array],
        *,
        remat: str = "none",
    ) -> jax.Array:
        return self.distances(self.states(model, batch, audio_bank, examples, remat), examples)

    def states(
        self, model, batch: Batch, audio_bank, examples: dict[str, jax.Array], remat: str
    ) -> jax.Array:
        """V^pred of equation 11, (B, D)."""
        return model.representations(batch, audio_bank, remat=remat)

    def distances(self, states: jax.Array, examples: dict[str, jax.Array]) -> jax.Array:
        """The data term's summands, (B,)."""
        return equations.squared_distance(states, examples["target"], self.reduction)


def check(samples: Samples, config) -> None:
    """Raises UserError for samples without both kinds whose means equation 9 takes, or of a variant."""
    check_kinds(samples, samples.mirrored, config.strategy, "benign (the role keep does not count)")
    for variant in chosen_variants(samples, config):
        variant.check()


def extract(samples: Samples, frozen, config) -> Extracted:
    """Representations and safety vector, equations 6 to 10, and whether the method's premise holds."""
    check(samples, config)
    rrs, variants = config.rrs, chosen_variants(samples, config)
    selection = rrs.top_m, rrs.top_m_rule, target_dtype(config)
    harmful, benign = np.flatnonzero(samples.harmful), np.flatnonzero(samples.mirrored)
    asked = [(harmful, PROMPT_T), (harmful, rrs.refusal_prompt), (benign, PROMPT_T)]  # equations 6, 8, 7
    prompts = [[frozen.prompt(i, text) for i in indices] for indices, text in asked]
    prompts += [variant.prompts(frozen) for variant in variants]
    states = frozen.representations([prompt for part in prompts for prompt in part])
    parts = np.split(states, np.cumsum([len(part) for part in prompts])[:-1])
    arrays = dict(zip(("harmful", "harmful_refusal", "benign"), parts[:3], strict=True))
    arrays["head_row"] = frozen.refusal_row()
    for variant, own in zip(variants, parts[3:], strict=True):
        arrays |= variant.arrays(own, arrays)

    def find_vector(refused: np.ndarray, benign: np.ndarray) -> equations.SafetyVector:
        """Equations 9, 5 and 10; a variant may turn the mean change before features are selected."""
        turning = [variant for variant in variants if variant.turns]
        if not turning:
            return frozen.safety_vector(refused, benign, *selection)
        delta = np.asarray(equations.mean_change(refused, benign))
        for variant in turning:
            delta = variant.turn(delta, arrays)
        return frozen.safety_features(delta, *selection)

    vector = find_vector(arrays["harmful_refusal"], arrays["benign"])
    for variant in variants:
        arrays |= variant.vectors(arrays, find_vector)
    arrays |= {"delta_mean": vector.delta_mean, "contribution": vector.contribution}
    arrays["safety_vector"] = vector.vector
    metadata = {
        "model": config.model.path,
        "prompts": str([PROMPT_T, rrs.refusal_prompt]),
        "top_m": str(rrs.top_m),
        "top_m_rule": rrs.top_m_rule,
        "refusal_token_id": str(frozen.refusal_ids[0]),
        "refusal_token_ids": json.dumps(frozen.refusal_ids),
    }
    content = {name: np.asarray(array) for name, array in arrays.items() if np.size(array)}
    return Extracted(content, metadata, _facts(frozen, config, vector, arrays))


def build(extracted: Extracted, samples: Samples, config):
    """The loss, from what `extract` gave."""
    variants, materials = chosen_variants(samples, config), Materials(samples, extracted)
    for variant in variants:
        variant.prepare(materials)
    targets = equations.targets(materials.start, samples.harmful, materials.vectors, target_dtype(config))
    for variant in variants:
        targets = variant.change(targets, materials)
    strategy = RRS(targets, config.loss.reduction)
    for variant in variants:
        strategy = variant.wrap(strategy, materials)
    return strategy


def target_dtype(config) -> str:
    """Number type to which ΔV̄ and the targets are rounded (`rrs.target_dtype`)."""
    return config.model.dtype if config.rrs.target_dtype == "model" else "float32"


def first_token_shares(frozen, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Share of samples, 0 to 1, whose likeliest first token is a refusal token, by kind of representation.

    The method takes for granted that it comes first under the refusal prompt and not for benign questions.
    """
    kinds = ("harmful_refusal", "harmful", "benign")
    return {
        kind: float(np.isin(frozen.first_tokens(arrays[kind]), frozen.refusal_ids).mean()) for kind in kinds
    }


def _facts(frozen, config, vector: equations.SafetyVector, arrays: dict[str, np.ndarray]) -> dict:
    """Facts on the premise for the stage's mark, which are also told on the terminal."""
    first = {kind: round(100 * share, 1) for kind, share in first_token_shares(frozen, arrays).items()}
    facts = {
        "refusal_token_id": frozen.refusal_ids[0],
        "positive_percent": round(100 * vector.positive_share, 1),
        "delta_logit": round(vector.delta_logit, 2),
        "delta_logit_selected": round(vector.delta_logit_selected, 2),
        "first_token_percent": {
            "harmful_refusal_prompt": first["harmful_refusal"],
            "harmful": first["harmful"],
            "benign": first["benign"],
        },
    }
    named = " or ".join(map(repr, config.rrs.refusal_tokens))
    say(
        f"premise: {named} (id {', '.join(map(str, frozen.refusal_ids))}) comes first for"
        f" {first['harmful_refusal']} % of harmful questions under the refusal prompt, {first['harmful']} %"
        f" under t, {first['benign']} % of benign ones; {facts['positive_percent']} % of the features raise"
        f" its logit, by {facts['delta_logit']} in all, {facts['delta_logit_selected']} after selection"
    )
    return facts
