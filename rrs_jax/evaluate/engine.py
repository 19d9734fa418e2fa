"""Engines: whatever answers the requests of an evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rrs_jax.evaluate.responses import Key


@dataclass(frozen=True)
class GenerationRequest:
    """One response that is wanted.

    Attributes:
      key: (set, id, mode, sample), unique and the same in every restart. An engine that draws its sampling
        randomness from it gives, when resumed, the responses of an uninterrupted run.
      text: the prompt; None where the audio stands alone.
      audio: path of the clip; None where the text stands alone.
      sample: index of this response among those to the same question.
    """

    key: Key
    text: str | None
    audio: Path | None
    sample: int


class OnFinished(Protocol):
    """Callback of an engine; `seconds` is how long the response took, where that is known."""

    def __call__(self, request: GenerationRequest, response: str, seconds: float | None = None) -> None: ...


Generate = Callable[[Sequence[GenerationRequest], OnFinished], None]


@dataclass(frozen=True)
class Engine:
    """A model that answers requests.

    Attributes:
      generate: `generate(requests, on_finished)` answers all requests in any order and calls
        `on_finished(request, response, seconds)` as each one is done. It gets only requests whose responses
        are not on disk yet, the samples of one question side by side.
      model: the model's name in the summary.
      made_by: JSON object that holds everything that decides the responses besides the prompts (model,
        adapter, decoding, seed). Responses of another maker are never mixed in.
      write_every: seconds between writes of finished responses; 0 where each one costs money.
    """

    generate: Generate
    model: str = ""
    made_by: dict = field(default_factory=dict)
    write_every: float = 2.0
