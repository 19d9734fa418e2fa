"""RRS on Qwen-Audio-Chat, the first generation, with the paper's settings (section 5.1; tables 3 and 4).

    python launch.py --config=configs/qwen_audio_rrs.py --config.model.path=FOLDER --config.run_dir=RUN
    python launch.py --config=configs/qwen_audio_rrs.py:card24    the same steps on a card of 24 GB
    python launch.py --config=configs/qwen_audio_rrs.py:smoke     every stage on a few questions

`FOLDER` is a Hugging Face folder or a hub id; without it, Qwen/Qwen-Audio-Chat is fetched. Its Python files
are not run. It has no audio-only mode, which is null in the summaries and N/A in the
tables.

Without `--config.data.manifest=MANIFEST.jsonl` it trains on the starter set, 280 + 280 questions in place of
the paper's 700 + 700.

Hardware: one GPU with 40 GB or more; 24 GB with `:card24` (the dry run estimates 28 and 18 GiB). The paper:
ASR 56.65 to 7.54 % (audio-text), 19.49 to 0.46 % (text-only), ORR 1.14 to 2.51 %.
"""

from ml_collections import ConfigDict

from rrs_jax.config import choose_variant, default_config
from rrs_jax.config.variants import card24, smoke


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; `variant` is empty, `card24` or `smoke`."""
    config = default_config()
    config.model.path = "Qwen/Qwen-Audio-Chat"
    config.run_dir = "runs/qwen_audio_rrs"
    config.rrs.top_m = 51.0  # table 4: the authors' choice for this model
    choose_variant(config, variant, card24=card24, smoke=smoke)
    return config
