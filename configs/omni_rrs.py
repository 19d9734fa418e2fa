"""RRS on Qwen2.5-Omni's thinker with the settings of the authors' own program (docs/authors.md).

    python launch.py --config=configs/omni_rrs.py --config.model.path=FOLDER --config.run_dir=RUN
    python launch.py --config=configs/omni_rrs.py:as_written  the equations as the paper prints them
    python launch.py --config=configs/omni_rrs.py:card24      the same result on a card of 24 GB
    python launch.py --config=configs/omni_rrs.py:smoke       every stage on a few questions

`FOLDER` is a Hugging Face folder or a hub id, of the whole model or of the thinker alone, 7B or 3B; without
it, Qwen/Qwen2.5-Omni-7B is fetched. Talker and vision are not loaded, and stay as they are in the merged
export.

Without `--config.data.manifest=MANIFEST.jsonl` it trains on the starter set, 280 + 280 questions in place of
the paper's 700 + 700; a clone of the authors' repository is a manifest too.

Hardware: one GPU with 40 GB or more; 24 GB with `:card24`.
"""

from ml_collections import ConfigDict

from rrs_jax.config import default_config
from rrs_jax.config.variants import choose_released_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is empty, `as_written`, `card24` or `smoke`."""
    config = default_config()
    config.model.path = "Qwen/Qwen2.5-Omni-7B"
    config.run_dir = "runs/omni_rrs"
    config.rrs.top_m = 51.0  # table 4: the authors' choice for this model
    choose_released_variant(config, variant)
    return config
