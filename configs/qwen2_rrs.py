"""RRS on Qwen2-Audio-7B-Instruct with the settings of the authors' own program (docs/authors.md).

    python launch.py --config=configs/qwen2_rrs.py --config.model.path=FOLDER --config.run_dir=RUN
    python launch.py --config=configs/qwen2_rrs.py:as_written  the equations as the paper prints them
    python launch.py --config=configs/qwen2_rrs.py:card24      the same result on a card of 24 GB
    python launch.py --config=configs/qwen2_rrs.py:smoke       every stage on a few questions

That these settings hold for this model too is an inference: the program that they are from is for
Qwen2.5-Omni alone. The share of features is the paper's for this model (table 4).

`FOLDER` is a Hugging Face folder or a hub id; without it, Qwen/Qwen2-Audio-7B-Instruct is fetched.

Without `--config.data.manifest=MANIFEST.jsonl` it trains on the starter set, 280 + 280 questions in place of
the paper's 700 + 700.

Hardware: one GPU with 40 GB or more; 24 GB with `:card24`. The paper: 35 minutes on two A100; ASR 28.11 to
5.94 % (audio-text), 10.93 to 2.80 % (text-only), 6.17 to 2.40 % (audio-only), ORR 1.31 to 2.06 %.
"""

from ml_collections import ConfigDict

from rrs_jax.config import default_config
from rrs_jax.config.variants import choose_released_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is empty, `as_written`, `card24` or `smoke`."""
    config = default_config()
    config.model.path = "Qwen/Qwen2-Audio-7B-Instruct"
    config.run_dir = "runs/qwen2_rrs"
    config.rrs.top_m = 25.0  # table 4: the authors' choice for this model
    choose_released_variant(config, variant)
    return config
