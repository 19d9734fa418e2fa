"""Variants that several config files have, behind the colon of `--config=FILE:VARIANT`."""

from collections.abc import Callable

from ml_collections import ConfigDict

from rrs_jax.config.presets import choose_variant
from rrs_jax.config.run_config import default_config, flatten


def choose_released_variant(config: ConfigDict, variant: str) -> None:
    """Applies a variant of a released model's config: all train as the authors did, but `as_written`.

    Raises UserError for a name that is none of `as_written`, `card24` and `smoke`.
    """
    if variant != "as_written":
        authors(config)
    choose_variant(config, variant, as_written=as_written, card24=card24, smoke=smoke)


def authors(config: ConfigDict) -> None:
    """Trains as the authors' program does (docs/authors.md), in whatever differs from the fields' defaults.

    The defaults have the rest: penalty.weight 1 on the weights, all linears of every layer, AdamW's b1 0.9 at
    5e-5 without a warm-up, batches of 16, 10 epochs. The program is for Qwen2.5-Omni-7B.
    """
    config.loss.reduction = "mean"
    config.lora.rank, config.lora.alpha, config.lora.dropout = 16, 4.0, 0.1
    config.train.b2, config.train.weight_decay = 0.98, 1e-3
    config.train.schedule, config.train.clip_norm = "linear", 1.0
    config.train.prompt_draw, config.train.prompt_group = "micro_batch", 4
    config.rrs.top_m_rule, config.rrs.target_dtype = "authors", "model"


def as_written(config: ConfigDict) -> None:
    """Trains by the equations as the paper prints them, with the fields' defaults where it names no value."""
    config.run_dir += "_as_written"


def card24(config: ConfigDict) -> None:
    """Fits the training on a card of 24 GB: a quarter of the batch at a time, and full rematerialisation.

    The steps are the same and take longer.
    """
    config.train.gradient_accumulation = 4
    config.train.remat = "full"
    config.extract.batch_size = 8
    config.generate.batch_size = 8


def smoke(config: ConfigDict) -> None:
    """Runs every stage on a few questions, in a run folder of its own."""
    config.run_dir += "_smoke"
    config.data.categories = 4
    config.data.pairs_per_category = 1
    config.data.eval_pairs_per_category = 1
    config.data.borderline = 2
    config.train.epochs = 1
    config.train.batch_size = 4
    config.generate.max_new_tokens = 8
    config.evaluate.samples = 1


def changed_fields(variant: Callable[[ConfigDict], None]) -> dict[str, object]:
    """Returns the fields, by their dotted names, that a variant sets to another value than their default."""
    config = default_config()
    before = flatten(config)
    variant(config)
    return {name: value for name, value in flatten(config).items() if value != before[name]}
