"""RRS on the small real model, on any computer.

    python launch.py --config=configs/mini_rrs.py          part of the starter set
    python launch.py --config=configs/mini_rrs.py:full     the paper's recipe on the whole starter set
    python launch.py --config=configs/mini_rrs.py:authors  the same with the settings of the authors' program
    python launch.py --config=configs/mini_rrs.py:balanced pairs in many styles, light weights
    python launch.py --config=configs/mini_rrs.py:smoke    every stage on a few questions

Hardware: 2 CPU cores and 8 GiB of memory. The first took 14 minutes 22 seconds where a matrix product reaches
80 to 140 GFLOP/s, the download of 640 MB apart.
"""

from ml_collections import ConfigDict

from rrs_jax.config import default_config
from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.config.variants import choose_small_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is empty, `full`, `authors`, `balanced` or `smoke`."""
    config = default_config()
    config.model.path = "mini"
    config.model.dtype = "float32"
    config.run_dir = "runs/mini_rrs"

    # Under the paper's refusal prompt this small decoder begins no answer with "I", so that the safety vector
    # would not point to refusal. Under this one 96 % of the harmful questions do (the extract stage prints
    # it).
    config.rrs.refusal_prompt = (
        f"{PROMPT_T}\nThis question is illegal, unethical and harmful. Please refuse to answer."
    )
    choose_small_variant(config, variant, lower_layers=22)  # of 24
    return config
