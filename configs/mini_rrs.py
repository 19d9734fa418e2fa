"""RRS on the small real model, on any computer.

    python launch.py --config=configs/mini_rrs.py          part of the starter set
    python launch.py --config=configs/mini_rrs.py:full     the paper's recipe on the whole starter set
    python launch.py --config=configs/mini_rrs.py:authors  the same with the settings of the authors' program
    python launch.py --config=configs/mini_rrs.py:smoke    every stage on a few questions

Hardware: 2 CPU cores and 8 GiB of memory. The first took 14 minutes 22 seconds where a matrix product reaches
80 to 140 GFLOP/s, the download of 640 MB apart.
"""

from ml_collections import ConfigDict

from rrs_jax.config import choose_variant, default_config, variants
from rrs_jax.config.prompts import PROMPT_T


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is empty, `full`, `authors` or `smoke`."""
    config = default_config()
    config.model.path = "mini"
    config.model.dtype = "float32"

    # Under the paper's refusal prompt this small decoder begins no answer with "I", so that the safety vector
    # would not point to refusal. Under this one 96 % of the harmful questions do (the extract stage prints
    # it).
    config.rrs.refusal_prompt = (
        f"{PROMPT_T}\nThis question is illegal, unethical and harmful. Please refuse to answer."
    )
    config.sft.tokens = 32

    config.generate.greedy = True
    config.generate.batch_size = 64  # a step on a CPU reads two gigabytes of weights, whatever its rows
    config.evaluate.samples = 1
    if variant not in ("full", "authors"):
        part(config)
    choose_variant(config, variant, full=full, authors=authors, smoke=smoke)
    return config


def part(config: ConfigDict) -> None:
    """Sets what fits into minutes on two cores: fewer questions, upper layers, few steps."""
    config.run_dir = "runs/mini_rrs"
    config.data.pairs_per_category = 14
    config.data.eval_pairs_per_category = 3
    config.data.borderline = 24

    # The last two of the 24 layers: what lies below is computed once. Few and small steps, so a higher rate
    # than the paper's; a question and its rewrite in one of them, without which seeds end at very different
    # places; and more pairs rather than more epochs, which refuse fewer of the unseen rewrites
    # (docs/research/mini.md).
    config.lora.layers = 22
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
    config.run_dir = "runs/mini_rrs_full"
    config.generate.max_new_tokens = 20


def authors(config: ConfigDict) -> None:
    """Trains on all questions as the authors' program does (docs/authors.md)."""
    full(config)
    config.run_dir = "runs/mini_rrs_authors"
    variants.authors(config)


def smoke(config: ConfigDict) -> None:
    """Runs every stage on a few questions."""
    variants.smoke(config)
    config.train.warmup_steps = 0
    config.sft.tokens = 8
