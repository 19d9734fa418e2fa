"""Variants that several config files have, behind the colon of `--config=FILE:VARIANT`."""

from ml_collections import ConfigDict


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
