"""RRS on Qwen-Audio-Chat, the first generation, with the settings of the authors' own program.

    python launch.py --config=configs/qwen_audio_rrs.py --config.model.path=FOLDER --config.run_dir=RUN
    python launch.py --config=configs/qwen_audio_rrs.py:as_written  the equations as the paper prints them
    python launch.py --config=configs/qwen_audio_rrs.py:card24      the same steps on a card of 24 GB
    python launch.py --config=configs/qwen_audio_rrs.py:smoke       every stage on a few questions

That these settings (docs/authors.md) hold for this model too is an inference: the program that they are from
is for Qwen2.5-Omni alone. The share of features is the paper's for this model (table 4).

`FOLDER` is a Hugging Face folder or a hub id; without it, Qwen/Qwen-Audio-Chat is fetched. Its Python files
are not run. It has no audio-only mode, which is null in the summaries and N/A in the
tables.

Without `--config.data.manifest=MANIFEST.jsonl` it trains on the starter set, 280 + 280 questions in place of
the paper's 700 + 700.

Hardware: one GPU with 40 GB or more; 24 GB with `:card24` (the dry run estimates 28 and 18 GiB). The paper:
ASR 56.65 to 7.54 % (audio-text), 19.49 to 0.46 % (text-only), ORR 1.14 to 2.51 %.
"""

from ml_collections import ConfigDict

from rrs_jax.config import default_config
from rrs_jax.config.variants import choose_released_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is empty, `as_written`, `card24` or `smoke`."""
    config = default_config()
    config.model.path = "Qwen/Qwen-Audio-Chat"
    config.run_dir = "runs/qwen_audio_rrs"
    config.rrs.top_m = 51.0  # table 4: the authors' choice for this model
    choose_released_variant(config, variant)
    return config
