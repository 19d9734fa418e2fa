"""The table of strategies: name, file, training questions, stages and preset. It imports nothing heavy."""

import dataclasses
import importlib
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Entry:
    """A strategy's row.

    Attributes:
      what: its description in the list of fields.
      module: its module in `rrs_jax.strategies`; None for the vanilla model.
      file: the file in the run folder that keeps what it takes from the frozen model; None for nothing.
      data: its training questions, one of `DATA`.
      trains: it trains adapters.
      extracts: it computes something with the frozen model before training.
      preset: fields by dotted names that it sets where a user gives none.
    """

    what: str
    module: str | None
    file: str | None = None
    data: str = "mirror"
    trains: bool = True
    extracts: bool = True
    preset: Mapping[str, object] = dataclasses.field(default_factory=dict)


# Fields that `rrs_plus` sets where a user gives none (`rrs_jax.config.resolve`).
PLUS: dict[str, object] = {
    "data.everyday": None,
    "data.contrast": None,
    "data.contrast_role": "mirror",
    "train.epochs": 20,
    "train.learning_rate": 2e-4,
    "train.average": 0.5,
    "train.audio_share": 0.25,
    "rrs.harmful_weight": 3.0,
    "rrs.harmful_audio_weight": 9.0,
}

# A training set of section 5.1 and the field that names a manifest of it.
DATA = {"mirror": "data.manifest", "basic": "data.basic_manifest", "parallel": "data.parallel_manifest"}

SFT, REPRESENTATIONS, STEERING = "sft_targets.jsonl", "representations.safetensors", "steering.safetensors"
HARC = "harc.safetensors"

STRATEGY_TABLE = {
    "vanilla": Entry("the model as it is", None, trains=False, extracts=False),
    "sft_full": Entry("cross-entropy on whole responses, on Basic", "sft_full", SFT, data="basic"),
    "sft_shallow_mirror": Entry("cross-entropy on the first token", "sft_shallow", SFT),
    "sft_shallow_parallel": Entry("the same on Parallel", "sft_shallow", SFT, data="parallel"),
    "sft_deep": Entry("refusals also behind a prefill (Qi et al. 2025)", "sft_deep", SFT),
    "rrs": Entry("reshapes the representation space (section 4)", "rrs", REPRESENTATIONS),
    "rrs_plus": Entry(
        "rrs with the values of PLUS in fields that are not given", "rrs", REPRESENTATIONS, preset=PLUS
    ),
    "rerouting": Entry("representation rerouting (Zou et al. 2024)", "rivals.rerouting"),
    "harc": Entry("harmfulness and refusal coupled (HARC, 2607.00572)", "rivals.harc", HARC),
    "steering": Entry("a refusal vector added at inference", "rivals.steering", STEERING, trains=False),
    "steering_conditional": Entry("the same where a probe fires", "rivals.steering", STEERING, trains=False),
    "system_prompt": Entry(
        "a system prompt that asks for safety", "rivals.system_prompt", trains=False, extracts=False
    ),
}


def load_strategy(strategy: str):
    """Returns the strategy's module, whose interface `rrs_jax.strategies` describes."""
    return importlib.import_module(f"rrs_jax.strategies.{STRATEGY_TABLE[strategy].module}")
