"""What a model is given: token ids, and where audio embeddings take their places."""

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class Batch:
    """Right-padded prompts.

    The embeddings of all clips lie one after the other in an *audio bank* `(rows, D)`, so that a clip is
    encoded once and used by every stage and epoch; `audio_index` says which row stands at which position.

    Attributes:
      input_ids: int32 (B, T), padded on the right.
      lengths: int32 (B,), the number of real tokens.
      audio_index: int32 (B, T), the bank's row that replaces the word embedding, -1 for text.
    """

    input_ids: jax.Array
    lengths: jax.Array
    audio_index: jax.Array


def right_padded(input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded on either side, (B, T), moved so that their real tokens stand first; also the lengths (B,).

    Rotary positions are relative to a row's first token, so a left-padded row means the same thing.
    """
    order = np.argsort(1 - np.asarray(attention_mask), axis=1, kind="stable")
    return np.take_along_axis(np.asarray(input_ids), order, axis=1), np.asarray(attention_mask).sum(axis=1)
