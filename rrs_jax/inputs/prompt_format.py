"""How one architecture writes a conversation."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptFormat:
    """What differs between architectures; one instance a file, listed in `processor.PROMPT_FORMATS`."""

    audio_token: str  # written once a clip by the template, then repeated for each of the clip's audio tokens
    default_prompt: Callable[
        [str | None, int, str | None], str
    ]  # (system, clips, text): for a folder without template
