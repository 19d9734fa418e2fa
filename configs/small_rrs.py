"""RRS on the real model of 1.5 billion parameters, whose decoder obeys the paper's own refusal prompt.

    python launch.py --config=configs/small_rrs.py:full     the paper's recipe on the whole starter set
    python launch.py --config=configs/small_rrs.py:authors  the same with the settings of the authors' program
    python launch.py --config=configs/small_rrs.py:balanced pairs in many styles, light weights
    python launch.py --config=configs/small_rrs.py          part of the starter set
    python launch.py --config=configs/small_rrs.py:smoke    every stage on a few questions

Hardware: the first three, in bfloat16, are for a GPU; the others, in float32, for 2 CPU cores and 12 GiB of
memory. `:smoke` took 4 min 45 s and 8.7 GiB, beside other work. The download of 1.3 GB, or 3.4 GB from
the hub, becomes two folders of 3.6 GB.
"""

from ml_collections import ConfigDict

from rrs_jax.config import default_config
from rrs_jax.config.variants import WHOLE, choose_small_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is empty, `full`, `authors`, `balanced` or `smoke`."""
    config = default_config()
    config.model.path = "small"
    config.model.dtype = "bfloat16" if variant in WHOLE else "float32"
    config.run_dir = "runs/small_rrs"
    choose_small_variant(config, variant, lower_layers=26)  # of 28
    return config
