"""The arguments of an evaluation: its questions, how they are asked, and where the results go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rrs_jax.config.prompts import MODES
from rrs_jax.evaluate.summary import ORR_MODE


@dataclass(frozen=True)
class Questions:
    """The questions of an evaluation.

    Attributes:
      rows: id, label (one of `responses.SETS`), category, question and audio of each; where known, style and
        clip_sum, the digest of the clip, by which an answer to another one is known.
      audio_folder: folder to which the audio paths are relative.
      setting: one of `config.vocabulary.SETTINGS`. The rows' audio is that of the setting
        (`settings.setting_rows`); modes that the setting does not have are null in the summary.
    """

    rows: Sequence[dict]
    audio_folder: str | Path = "."
    setting: str = "spoken"


@dataclass(frozen=True)
class EvaluationPlan:
    """How the questions are asked.

    Attributes:
      modes: modes asked for. Harmful questions are asked in all of them, all others in those
        that are also in `over_refusal_modes`.
      samples: responses to each question in each mode.
      available_modes: modes that the model has (Qwen-Audio lacks audio_only); others are null in the summary.
      text_only_variant: one of `config.prompts.TEXT_ONLY_VARIANTS`.
    """

    modes: Sequence[str] = MODES
    samples: int = 5
    available_modes: Sequence[str] = MODES
    text_only_variant: str = "prompted"
    over_refusal_modes: Sequence[str] = (ORR_MODE,)


@dataclass(frozen=True)
class Target:
    """The place of an evaluation's files, `folder`/`name`; an empty `strategy` is the name."""

    folder: str | Path
    name: str
    strategy: str = ""

    @property
    def path(self) -> Path:
        """The folder of the evaluation's files."""
        return Path(self.folder) / self.name
