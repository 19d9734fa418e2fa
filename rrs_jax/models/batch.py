"""What a model is given: token ids, and where audio embeddings take their places."""

import flax.struct
import jax

from rrs_jax.models.cache import Store


@flax.struct.dataclass
class Batch:
    """Right-padded prompts.

    The embeddings of all clips lie one after the other in an *audio bank* `(rows, D)`, so that a clip is
    encoded once and used by every stage and epoch; `audio_index` says which row stands at which position.

    Attributes:
      input_ids: int32 (B, T), padded on the right.
      lengths: int32 (B,), the number of real tokens.
      audio_index: int32 (B, T), the bank's row that replaces the word embedding, -1 for text.
      lower_states: (B, T, D) hidden states behind the first `lower_layers` layers, from which a pass that
        reads no layer below starts in place of the embeddings (`rrs_jax.frozen.prefix_states`); None starts
        from these.
      lower_store: these layers' keys and values, (B, T, n, K, H), which `prefill` needs to start from there.
    """

    input_ids: jax.Array
    lengths: jax.Array
    audio_index: jax.Array
    lower_states: jax.Array | None = None
    lower_store: Store | None = None
    lower_layers: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class Trees:
    """Prompts that begin alike, several in one sequence: their common beginning, and behind it each one's own
    end.

    Attributes:
      input_ids, audio_index: as of a `Batch`.
      positions: int32 (B, T), of each token in its own prompt.
      branches: int32 (B, T), 0 for the beginning and what fills up a row, 1, 2, ... for the ends. A token
        sees what stands before it of branch 0 and of its own.
      lengths: int32 (B,), tokens of a tree's longest prompt.
    """

    input_ids: jax.Array
    audio_index: jax.Array
    positions: jax.Array
    branches: jax.Array
    lengths: jax.Array
