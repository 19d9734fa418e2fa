"""A bridge's data as batches of what is heard, read and answered."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_T
from rrs_jax.errors import UserError
from rrs_jax.frozen.prefix_trees import common_length
from rrs_jax.inputs.batching import bucket_lengths, bucket_of, make_batches
from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini.bridge_batch import DistillationBatch, Example, make_batch
from rrs_jax.mini.bridge_data import Clip
from rrs_jax.mini.bridge_phrases import INSTRUCTIONS
from rrs_jax.mini.bridge_questions import read_prompt

ANSWER_TOKENS = 32
REPEAT_PROMPTS = (
    "Repeat the question in the audio.",
    "Write down what is said in the audio.",
    "Transcribe the audio.",
)
BUCKETS = 2  # lengths of a batch's prompts


class Examples:
    """Rows of bridge data as examples of what is heard, read and answered.

    Encoded prompts are kept: the step would wait for the tokenizer, and prompts come again, for every clip of
    the same length and in every epoch.
    """

    def __init__(self, processor: Processor, rows: list[dict], clips: list[Clip], batch_size: int):
        self.processor, self.rows, self.clips, self.batch_size = processor, rows, clips, batch_size
        self.encode = functools.cache(processor.encode)
        self.end = list(processor.eos_token_ids[:1])
        texts = (None, *INSTRUCTIONS, *PROMPT_POOL, PROMPT_T)
        # Prompts differ by a few tokens around the clip's own length; the longest one sets the room.
        room = max(len(processor.encode(text, [2])) for text in (*texts, *REPEAT_PROMPTS))
        self.lengths = [audio_token_count(length) + room + ANSWER_TOKENS for _, length in clips]
        self.buckets = bucket_lengths(self.lengths, BUCKETS, 16)
        self.frames = dict.fromkeys(self.buckets, 0)  # of the longest clip in each bucket, a multiple of 4
        for (features, _), length in zip(clips, self.lengths, strict=True):
            bucket = bucket_of(length, self.buckets)
            self.frames[bucket] = max(self.frames[bucket], -(-features.shape[1] // 4) * 4)
        self.prefixes = self._prefixes(texts)
        said = processor.tokenizer([row["text"] for row in rows], add_special_tokens=False)["input_ids"]
        room = max(len(processor.encode(read_prompt("?", text))) for text in texts)
        self.written_length = -(-(max(map(len, said)) + room) // 16) * 16 + ANSWER_TOKENS

    def _prefixes(self, texts: Sequence[str | None]) -> tuple[int, int]:
        """Returns the `DistillationBatch.prefixes` of all prompts."""
        spoken = [self.encode(text, (2,)) for text in (*texts, *REPEAT_PROMPTS)]
        # Two questions that begin differently, so that nothing of a question is in it.
        written = [
            self.encode(read_prompt(question, text)) for question in ("Who?", "Are?") for text in texts
        ]
        before = min(common_length(spoken), spoken[0].index(self.processor.audio_token_id))
        return before, common_length([spoken[0][:before], *written])

    def answer(self, i: int) -> Example:
        """Returns row i with its answer; without one, nothing but its states can be learnt."""
        row, clip = self.rows[i], self.clips[i]
        spoken = self.encode(row["prompt"], (audio_token_count(clip[1]),))
        written = self.encode(read_prompt(row["text"], row["prompt"]))
        return Example(spoken, clip, written, (row["answer"] or []) + (self.end if row["ended"] else []))

    def repeat(self, i: int, prompt: str) -> Example:
        """Returns row i to be repeated.

        Nothing is read: the loss of repeating has no divergence.
        """
        clip, said = self.clips[i], self.processor.text_ids(self.rows[i]["text"])
        return Example(
            self.encode(prompt, (audio_token_count(clip[1]),)), clip, self.encode(prompt), said + self.end
        )

    def answered(self) -> list[tuple[int, ...]]:
        """Returns the rows with an answer two by two: a question and its copy, where both have one.

        Two without stand together, and one that is left over goes.
        """
        groups = two_by_two(self.rows, [i for i, row in enumerate(self.rows) if row["answer"] is not None])
        if not groups:
            raise UserError("--samples: no two questions of them got an answer; ask more.")
        return groups

    def batches(self, random: np.random.Generator, *, repeat: bool) -> Iterator[DistillationBatch]:
        """Yields batches, epoch after epoch: of all rows, to be repeated, or of those with an answer."""
        groups = [(i,) for i in range(len(self.rows))] if repeat else self.answered()
        lengths = [max(self.lengths[i] for i in group) for group in groups]
        while True:
            seed = int(random.integers(2**31))
            for selection in make_batches(lengths, self.batch_size // len(groups[0]), seed, self.buckets):
                rows = [row for group in selection.indices for row in groups[group]]
                yield make_batch(
                    [self._example(row, random) if repeat else self.answer(row) for row in rows],
                    spoken_length=selection.length,
                    frames=self.frames[selection.length],
                    written_length=self.written_length,
                    answer_length=ANSWER_TOKENS,
                    audio_token_id=self.processor.audio_token_id,
                    prefixes=self.prefixes,
                )

    def _example(self, row: int, random: np.random.Generator) -> Example:
        return self.repeat(row, REPEAT_PROMPTS[random.integers(len(REPEAT_PROMPTS))])


def two_by_two(rows: list[dict], chosen: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the chosen rows in pairs: those of the same `pair`, then the others as they come."""
    groups: dict[int, list[int]] = {}
    for i in chosen:
        groups.setdefault(rows[i]["pair"], []).append(i)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    pairs = [tuple(group) for group in groups.values() if len(group) == 2]
    return [*pairs, *zip(alone[::2], alone[1::2], strict=False)]
