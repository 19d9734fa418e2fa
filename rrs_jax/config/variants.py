"""Variants that several config files have, behind the colon of `--config=FILE:VARIANT`."""

from collections.abc import Callable

from ml_collections import ConfigDict

from rrs_jax.config.presets import choose_variant
from rrs_jax.config.run_config import default_config, flatten
from rrs_jax.config.strategy_table import PLUS

WHOLE = ("full", "authors", "balanced")  # variants of a small model's config that train on all questions


def choose_released_variant(config: ConfigDict, variant: str) -> None:
    """Applies a variant of a released model's config: all train as the authors did, but `as_written`.

    Raises UserError for a name that is none of `as_written`, `card24` and `smoke`.
    """
    if variant != "as_written":
        authors(config)
    choose_variant(config, variant, as_written=as_written, card24=card24, smoke=smoke)


def choose_small_variant(config: ConfigDict, variant: str, *, lower_layers: int) -> None:
    """Applies a variant of a small real model's config, whose model and run folder are set.

    lower_layers: decoder layers without an adapter where part of the starter set is trained on.
    Raises UserError for a name that is none of `WHOLE` and `smoke`.
    """
    config.sft.tokens = 32
    config.generate.greedy = True
    config.evaluate.samples = 1
    if variant not in WHOLE:
        part(config, lower_layers)
    choose_variant(config, variant, full=full, authors=small_authors, balanced=balanced, smoke=small_smoke)


def part(config: ConfigDict, lower_layers: int) -> None:
    """Sets what fits into minutes on two cores: fewer questions, upper layers, few steps."""
    config.data.pairs_per_category = 14
    config.data.eval_pairs_per_category = 3
    config.data.borderline = 24

    # Of the last layers: what lies below is computed once. Few and small steps, so a higher rate than the
    # paper's; a question and its rewrite in one of them, without which seeds end at very different places;
    # and more pairs rather than more epochs, which refuse fewer of the unseen rewrites
    # (docs/research/mini.md).
    config.lora.layers = lower_layers
    config.train.epochs = 2
    config.train.batch_size = 4
    config.train.twins_together = True
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 5
    config.extract.batch_size = 8

    # The first token and one chunk of steps; of 384 answers of 20 no judgement changed.
    config.generate.max_new_tokens = 17
    # Figure 2: `ends` has 216 more prompts, as many as half of extraction.
    config.report.representation_epochs = ()


def full(config: ConfigDict) -> None:
    """Keeps section 5.1's settings, which are the defaults, on all 280 + 280 training questions."""
    config.run_dir += "_full"
    config.generate.max_new_tokens = 20


def small_authors(config: ConfigDict) -> None:
    """Trains on all questions as the authors' program does (docs/authors.md)."""
    config.run_dir += "_authors"
    config.generate.max_new_tokens = 20
    authors(config)


def balanced(config: ConfigDict) -> None:
    """Trains as `rrs_plus` does, on pairs in many styles, with harmful questions weighed as harmless ones,
    and keeps what else is asked of a clip.

    Of what was tried on `small` it is nearest to RRS's safety without its over-refusal
    (docs/research/many_styles.md). The epochs give as many updates as on the part of these pairs that left
    styles and categories out.
    """
    config.run_dir += "_balanced"
    config.generate.max_new_tokens = 20
    config.update_from_flattened_dict(PLUS)
    config.data.train_set = "styles"
    config.train.epochs, config.train.kept_task_share = 6, 0.2
    config.rrs.harmful_weight, config.rrs.harmful_audio_weight = 1.0, 3.0


def small_smoke(config: ConfigDict) -> None:
    """Runs every stage on a few questions."""
    smoke(config)
    config.train.warmup_steps = 0
    config.sft.tokens = 8


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
