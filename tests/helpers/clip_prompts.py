"""Prompts with clips as token ids, for our models and for those of transformers."""

import jax.numpy as jnp
import numpy as np
import torch

from rrs_jax.inputs.mel import audio_token_count
from rrs_jax.models.batch import Batch

AUDIO = 130
FRAMES = np.array([97, 38, 211, 6])  # valid mel frames of four clips: odd, even, long, very short


def clip_features() -> np.ndarray:
    """Returns four clips' features as the released model sees them, (4, 12, 3000) float32, with something
    behind each clip's end."""
    features = np.random.default_rng(0).normal(size=(4, 12, 3000)).astype(np.float32)
    for feature, frames in zip(features, FRAMES, strict=True):
        feature[:, frames + 2 :] = -1.2
    return features


def prompts(rng) -> tuple[list[list[int]], list[list[int]]]:
    """Two clips in one prompt, one clip, no clip, one clip; all of different length. Also each row's
    clips."""

    def text(n):
        return rng.integers(3, 120, n).tolist()

    tokens = [AUDIO] * audio_token_count(int(FRAMES[0])), [AUDIO] * audio_token_count(int(FRAMES[1]))
    others = [AUDIO] * audio_token_count(int(FRAMES[2])), [AUDIO] * audio_token_count(int(FRAMES[3]))
    rows = [
        text(5) + tokens[0] + text(3) + tokens[1] + text(7),
        text(2) + others[0] + text(4),
        text(9),
        text(3) + others[1] + text(11),
    ]
    return rows, [[0, 1], [2], [], [3]]


def audio_bank(model, clips) -> tuple[np.ndarray, list[int]]:
    """The bank of all clips and each clip's first row; row 0 belongs to none."""
    frames = 256
    output = np.asarray(model.encode_audio(jnp.asarray(clips[:, :, :frames]), jnp.asarray(FRAMES)))
    rows, offsets = [np.zeros((1, output.shape[-1]), np.float32)], []
    for clip, length in zip(output, FRAMES, strict=True):
        offsets.append(sum(len(part) for part in rows))
        rows.append(clip[: audio_token_count(int(length))])
    return np.concatenate(rows), offsets


def make_batch(rows, row_clips, offsets) -> Batch:
    width = max(map(len, rows)) + 3
    ids, index = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
    for r, (row, clip_ids) in enumerate(zip(rows, row_clips, strict=True)):
        ids[r, : len(row)] = row
        bank_rows = [offsets[c] + i for c in clip_ids for i in range(audio_token_count(int(FRAMES[c])))]
        index[r, np.flatnonzero(ids[r] == AUDIO)] = bank_rows
    return Batch(jnp.asarray(ids), jnp.asarray([len(row) for row in rows], jnp.int32), jnp.asarray(index))


def torch_inputs(rows, clips, side: str) -> dict:
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for r, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[r, where], mask[r, where] = row, 1
    feature_mask = (np.arange(3000)[None] < FRAMES[:, None]).astype(np.int64)
    return dict(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        position_ids=torch.tensor(np.maximum(mask.cumsum(1) - 1, 0)),
        input_features=torch.tensor(clips),
        feature_attention_mask=torch.tensor(feature_mask),
    )
