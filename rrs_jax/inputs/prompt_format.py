"""The way in which one architecture writes a conversation and reads its folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrs_jax.config.prompts import MODES
from rrs_jax.inputs.mel import MelConfig


def whole_config(values: dict) -> dict:
    """All of config.json's content, for models that it describes without a deeper level."""
    return values


@dataclass(frozen=True)
class PromptFormat:
    """Settings that differ between architectures; each module of this package that is named for one has an
    instance `FORMAT`.

    Attributes:
      audio_token: written once a clip by the template, then repeated for each of the clip's embeddings, less
        the `MelConfig.extra_tokens` that the template writes itself.
      default_prompt: (system, clips, text) to the prompt, for a folder without template; parts of a sequence
        are tokenised each on its own.
      modes: ways of asking a question that the model was made for.
      stop_tokens: end an answer, beside those that the folder names.
      model_values: from config.json's content the part that describes encoder and decoder.
      load_tokenizer: from the folder; None is transformers' AutoTokenizer. What it gives has the methods of a
        `PreTrainedTokenizerFast`.
      mel_config: from folder and `model_values`; None reads preprocessor_config.json.
    """

    audio_token: str
    default_prompt: Callable[[str | None, int, str | None], str | Sequence[str]]
    modes: tuple[str, ...] = MODES
    stop_tokens: tuple[str, ...] = ()
    model_values: Callable[[dict], dict] = whole_config
    load_tokenizer: Callable[[Path], Any] | None = None
    mel_config: Callable[[Path, dict], MelConfig] | None = None
