"""Inputs of a model: token ids, and where audio embeddings take their places."""

import flax.struct
import jax

from rrs_jax.models.cache import KeysValues


@flax.struct.dataclass
class Batch:
    """Right-padded prompts.

    The embeddings of all clips lie one after the other in an *audio bank* `(rows, D)`, so that a clip is
    encoded once and used by every stage and epoch; `audio_index` says which row stands at which position.

    Attributes:
      input_ids: int32 (B, T), padded on the right.
      lengths: int32 (B,), the number of real tokens.
      audio_index: int32 (B, T), the bank's row that replaces the word embedding, -1 for text.
      lower_states: (B, T, D), the hidden states behind the first `lower_layers` layers, from which a pass
        starts in place of the embeddings (`rrs_jax.frozen.prefix_states`); None starts from these.
      lower_keys_values: these layers' keys and values (B, T, L, K, E), which `prefill` needs to start there.
      dropout_key: random key of the adapters' dropout in a training step; None drops nothing.
    """

    input_ids: jax.Array
    lengths: jax.Array
    audio_index: jax.Array
    lower_states: jax.Array | None = None
    lower_keys_values: KeysValues | None = None
    lower_layers: int = flax.struct.field(pytree_node=False, default=0)
    dropout_key: jax.Array | None = None


@flax.struct.dataclass
class TreeBatch:
    """Prompts with a common prefix, several in one row: the prefix, and behind it each one's own suffix.

    Attributes:
      input_ids, audio_index: as of a `Batch`.
      positions, branches: as of a `rrs_jax.models.decoder_pass.TreeLayout`; what fills up a row has branch 0.
      lengths: int32 (B,), tokens of a tree's longest prompt.
    """

    input_ids: jax.Array
    audio_index: jax.Array
    positions: jax.Array
    branches: jax.Array
    lengths: jax.Array
