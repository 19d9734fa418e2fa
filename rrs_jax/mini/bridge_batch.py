"""A batch of spoken questions, the same questions written, and the answers that follow both."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rrs_jax.inputs.batching import collate
from rrs_jax.inputs.mel import audio_token_count, pad_features
from rrs_jax.models.batch import Batch


@dataclasses.dataclass(frozen=True)
class Example:
    """A spoken question with a text, the same question written, and the answer that follows both.

    `clip` is the one clip of `spoken`, as `log_mel` returns it.
    """

    spoken: list[int]
    clip: tuple[np.ndarray, int]
    written: list[int]
    answer: list[int]


@flax.struct.dataclass
class DistillationBatch:
    """A batch of `Example`s on the device.

    Attributes:
      prefixes: with how many tokens all spoken prompts begin alike, before any clip, and all written ones;
        the latter are the former's first. They are computed for one row, since nothing of them is learnt.
    """

    spoken: Batch
    features: jax.Array  # (B, bins, frames)
    feature_lengths: jax.Array  # int32 (B,)
    written: Batch
    answer: jax.Array  # int32 (B, A)
    answer_mask: jax.Array  # float32 (B, A)
    spoken_start: jax.Array  # int32 (B,): length of the spoken prompt
    written_start: jax.Array
    prefixes: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))

    def cut(self, parts: int) -> "DistillationBatch":
        """Returns the rows in parts of equal size: a leading axis (parts,) of every array."""
        cut = jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), self)
        # Each part's clips lie in a bank of its own, at whose beginning the row for none stays.
        behind = jnp.arange(parts)[:, None, None] * (
            len(self.features) // parts * bank_rows(self.features.shape[-1])
        )
        index = jnp.where(cut.spoken.audio_index > 0, cut.spoken.audio_index - behind, cut.spoken.audio_index)
        return cut.replace(spoken=cut.spoken.replace(audio_index=index))


def bank_rows(frames: int) -> int:
    """Returns the rows of the bank that `Bridge.encode` gives to each clip of so many frames."""
    return frames // 4


def _check_prefixes(examples: Sequence[Example], prefixes: tuple[int, int], audio_token_id: int) -> None:
    spoken = examples[0].spoken[: prefixes[0]]
    written = spoken[: prefixes[1]]
    if audio_token_id in spoken or not all(
        example.spoken[: prefixes[0]] == spoken and example.written[: prefixes[1]] == written
        for example in examples
    ):
        raise ValueError(f"not all prompts begin with the same {prefixes} tokens, before the clip")


def make_batch(
    examples: Sequence[Example],
    *,
    spoken_length: int,
    frames: int,
    written_length: int,
    answer_length: int,
    audio_token_id: int,
    prefixes: tuple[int, int] = (0, 0),
) -> DistillationBatch:
    """Pads both prompts, each followed by the answer, to the given lengths.

    Answers beyond `answer_length` are cut. Raises ValueError where not all prompts begin alike with so many
    tokens as `DistillationBatch.prefixes` says, before the clip.
    """
    _check_prefixes(examples, prefixes, audio_token_id)
    answers = np.zeros((len(examples), answer_length), np.int32)
    mask = np.zeros((len(examples), answer_length), np.float32)
    spoken, written = [], []
    for row, example in enumerate(examples):
        answer = example.answer[:answer_length]
        answers[row, : len(answer)], mask[row, : len(answer)] = answer, 1.0
        # `Bridge.encode` puts the clips one behind the other, each in its whole bucket, behind a row for
        # none.
        first = 1 + row * bank_rows(frames)
        spoken.append(([*example.spoken, *answer], [first], [audio_token_count(example.clip[1])]))
        written.append(([*example.written, *answer], [], []))
    features, feature_lengths = pad_features([example.clip for example in examples], frames)
    return DistillationBatch(
        spoken=collate(spoken, spoken_length, audio_token_id),
        features=features,
        feature_lengths=feature_lengths,
        written=collate(written, written_length, audio_token_id),
        answer=answers,
        answer_mask=mask,
        spoken_start=np.array([len(e.spoken) for e in examples], np.int32),
        written_start=np.array([len(e.written) for e in examples], np.int32),
        prefixes=prefixes,
    )
