"""The settings of training. Each is written once, here: `FIELDS` has its row from the same line.

To add one, give a dataclass below an attribute made by `setting`. It is then a field of the config with a
default, a kind and a sentence, checked, listed by `python -m rrs_jax.config`, and filled by `train_config`.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from rrs_jax.config.kinds import Field, Kind, boolean, choice, either, integer, names, number

SEED = Field(
    "seed", 0, integer(0, 2**31 - 1),
    "Seed of training and answers: LoRA's start, data order, prompts t', sampled answers. The data has its "
    "own.",
)  # fmt: skip


def setting(name: str, default: Any, kind: Kind, sentence: str, **further: Any) -> Any:
    """Returns a dataclass field that is also the config's field `name`.

    `own_default` is the dataclass's default where that differs from the config's; `placement` is the field's.
    """
    own_default = further.pop("own_default", default)
    metadata = {"field": Field(name, default, kind, sentence, **further)}
    return dataclasses.field(default=own_default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and the penalty of equation 13."""

    learning_rate: float = setting(
        "train.learning_rate", 5e-5, number(0, above=True), "AdamW's highest rate (section 5.1)."
    )
    schedule: str = setting(
        "train.schedule",
        "constant",
        choice("constant", "cosine", "linear"),
        "Course of the rate after the warm-up; cosine and linear fall to 0 at the last step. Not in the "
        "paper.",
    )
    average: float = setting(
        "train.average",
        0.0,
        number(0, 1),
        "Share of the steps, the last ones, whose adapters are averaged (Polyak and Juditsky 1992; Izmailov "
        "et al. 2018); with 0 the result is the last step's adapters. Not in the paper.",
    )
    warmup_steps: int = setting(
        "train.warmup_steps",
        0,
        integer(0),
        "Steps in which the rate rises linearly from 0. Not in the paper.",
    )
    clip_norm: float | None = setting(
        "train.clip_norm",
        None,
        either(number(0, above=True), None),
        "Highest global norm of the gradient; None does not clip. Not in the paper.",
    )
    weight_decay: float = setting(
        "train.weight_decay",
        0.0,
        number(0),
        "AdamW's decay of the adapters; not in the paper, whose penalty already holds the weights.",
    )
    b1: float = setting("train.b1", 0.9, number(0, 0.999999), "AdamW's decay of the gradient's mean.")
    b2: float = setting("train.b2", 0.999, number(0, 0.999999), "AdamW's decay of the gradient's square.")
    eps: float = setting("train.eps", 1e-8, number(0, above=True), "AdamW's term in the denominator.")
    penalty_weight: float = setting(
        "penalty.weight",
        1.0,
        number(0),
        "Factor of the penalty in the loss (equation 13); the paper has none, so 1. On the mini, with the "
        "sum over features, 1 changes nothing and about 100 acts as in table 3 (docs/results.md).",
    )
    penalty_space: str = setting(
        "penalty.space",
        "weights",
        choice("weights", "lora"),
        "`weights`: squared distance of the adapted matrices from the base, as written in the paper; "
        "`lora`: squared distance of the LoRA arrays from their start.",
    )
    # A step takes what `auto` was resolved to (`rrs_jax.train.memory.fitting_remat`).
    remat: str = setting(
        "train.remat",
        "auto",
        choice("auto", "none", "dots", "lean", "full"),
        "Activations computed again in the backward pass: none; all but products and attention (dots); these "
        "and the MLP's first two products (lean); all (full). `auto` is the first of the last three that "
        "fits into the device's memory.",
        placement=True,
        own_default="dots",
    )
    unroll: bool = setting(
        "train.unroll",
        False,
        boolean(),
        "Compile each layer by itself: 6 % fewer milliseconds a step on an H100, with model.quantize=float8 "
        "20 % fewer for twice the layers' memory more; four times the compilation, once for each padded "
        "length (docs/training_step.md).",
        placement=True,
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Batches, draws, checkpoints and the optimiser.

    Prompts are padded to at most `max_buckets` lengths, multiples of `bucket_multiple`, each compiled once.
    """

    epochs: int = setting("train.epochs", 10, integer(1), "Passes over the training questions (section 5.1).")
    batch_size: int = setting(
        "train.batch_size", 16, integer(1), "Questions a step, over all devices (section 5.1)."
    )
    gradient_accumulation: int = setting(
        "train.gradient_accumulation",
        1,
        integer(1),
        "Parts that a step's batch is cut into to save memory; must divide train.batch_size.",
    )
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    twins_together: bool = setting(
        "train.twins_together",
        False,
        boolean(),
        "Put a harmful question and its rewrite into one batch under one prompt, so that what both move "
        "cancels. Not in the paper.",
    )
    prompt_draw: str = setting(
        "train.prompt_draw",
        "each",
        choice("each", "micro_batch"),
        "How a step draws the prompts t': `each` question by itself; `micro_batch`: train.prompt_group "
        "questions, about equally long, draw different ones, as in the authors' program. The paper says "
        '"randomly selected".',
    )
    prompt_group: int = setting(
        "train.prompt_group",
        4,
        integer(2),
        "Questions that share out the prompts with train.prompt_draw=micro_batch; 4 is the authors' "
        "micro-batch. At most the questions of a part of a step's batch, which it must divide.",
    )
    text_share: float = setting(
        "train.text_share",
        0.0,
        number(0, 1),
        "Share of the questions that a step asks in writing alone, with the same targets as where they are "
        "heard; the paper has none.",
    )
    kept_text_share: float = setting(
        "train.kept_text_share",
        0.0,
        number(0, 1),
        "Share of the questions that rrs, rrs_plus and harc ask in writing, as the text-only evaluation "
        "does, with the frozen model's own state (harc: its next token's distribution) under that very "
        "prompt as target, so that what is refused and answered in writing stays so. Half of them are the "
        "bare question (`plain`), half announced as an audio's content (`prompted`). Not in the paper.",
    )
    kept_task_share: float = setting(
        "train.kept_task_share",
        0.0,
        number(0, 1),
        "Share of the questions beside whose clip rrs, rrs_plus and harc ask for something else than an "
        "answer (to write down what is said, to count the words), with the same target, so that a "
        "transcription of harmful speech is not refused. Not in the paper.",
    )
    audio_share: float = setting(
        "train.audio_share",
        0.0,
        number(0, 1),
        "Share of the questions that a step asks by their clip alone; the paper has none. At most 1 with "
        "train.text_share, train.kept_text_share and train.kept_task_share.",
    )
    checkpoint_every_steps: int = setting(
        "train.checkpoint_every_steps",
        200,
        integer(1),
        "Steps between checkpoints, beside the one at each epoch's end; a killed run loses at most these.",
        placement=True,
    )
    keep_checkpoints: int = setting(
        "train.keep_checkpoints", 2, integer(1), "Latest checkpoints kept, beside the best.", placement=True
    )
    log_to: tuple[str, ...] = setting(
        "train.log_to",
        ("jsonl", "tensorboard"),
        names("different names out of jsonl, tensorboard, wandb", "jsonl", "tensorboard", "wandb"),
        "Where the figures of steps and the rates of evaluations go: `jsonl`, metrics.jsonl and rates.jsonl "
        "in the run folder, of which the report draws the losses; `tensorboard`, its folder tensorboard; "
        "`wandb`, a run of Weights & Biases (pip install wandb) in the project $WANDB_PROJECT.",
        placement=True,
    )
    max_buckets: int = 5
    bucket_multiple: int = 8
    seed: int = dataclasses.field(default=SEED.default, metadata={"field": SEED})

    def result_settings(self) -> dict:
        """Returns the settings that shape the adapters; the others may change while a run is under way."""
        values = dataclasses.asdict(self)
        for settings, own in ((self, values), (self.optimiser, values["optimiser"])):
            for name, field in _fields(settings):
                if field.placement:
                    del own[name]
        values["optimiser"]["clip_norm"] = self.optimiser.clip_norm or 0.0  # as checkpoints name no clipping
        if self.prompts_together == 1:  # as checkpoints of programs without these fields
            del values["prompt_draw"], values["prompt_group"]
        for name in ("kept_text_share", "kept_task_share"):  # likewise
            if not values[name]:
                del values[name]
        return values

    @property
    def micro_batch_size(self) -> int:
        """Rows of a part of a step's batch."""
        return self.batch_size // self.gradient_accumulation

    @property
    def prompts_together(self) -> int:
        """Number of questions that draw their prompts without replacement; 1 where each draws by itself."""
        return min(self.prompt_group, self.micro_batch_size) if self.prompt_draw == "micro_batch" else 1

    def total_steps(self, samples: int) -> int:
        """Number of updates of the whole training."""
        return self.steps_per_epoch(samples) * self.epochs

    def steps_per_epoch(self, samples: int) -> int:
        """Returns the number of updates in which so many samples are seen once."""
        micro_batches = -(-samples // self.micro_batch_size)
        return -(-micro_batches // self.gradient_accumulation)


def training_fields(group: str) -> Iterator[Field]:
    """Yields the config's fields in a group, such as `train`, that training takes."""
    for _, field in (*_fields(TrainConfig), *_fields(OptimiserConfig)):
        if field.name.startswith(f"{group}."):
            yield field


def train_config(config: ConfigDict) -> TrainConfig:
    """Returns the training settings of a run's config, with `train.remat` as it stands there."""

    def values(settings: type) -> dict[str, Any]:
        return {
            name: functools.reduce(operator.getitem, field.name.split("."), config)
            for name, field in _fields(settings)
        }

    return TrainConfig(**values(TrainConfig), optimiser=OptimiserConfig(**values(OptimiserConfig)))


def _fields(settings: Any) -> Iterator[tuple[str, Field]]:
    """Yields the attributes of a settings class that are fields of the config, with that field."""
    for attribute in dataclasses.fields(settings):
        if "field" in attribute.metadata:
            yield attribute.name, attribute.metadata["field"]
