"""Decoder and encoder from the hub's own safetensors folders, under Qwen2-Audio's names."""

from collections.abc import Iterator
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.files import read_json
from rrs_jax.mini.lazy_tensor import LazyTensor
from rrs_jax.mini.tokenizer import Vocabulary
from rrs_jax.weights.safetensors_io import read_folder

TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)
AUDIO_FIELDS = (
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "max_source_positions",
)


class HubDecoder:
    """A Qwen2 folder with tied head: config.json, tokenizer.json, model.safetensors."""

    def __init__(self, folder: Path):
        self.folder = folder

    def text_config(self) -> dict:
        """Returns the decoder's part of config.json."""
        return chosen_fields(self.folder / "config.json", TEXT_FIELDS)

    def vocabulary(self) -> Vocabulary:
        """Returns the decoder's vocabulary."""
        return Vocabulary.from_tokenizer_json(self.folder / "tokenizer.json")

    def lazy_tensors(self) -> Iterator[LazyTensor]:
        """Yields the decoder's tensors under their Qwen2-Audio names, without a head."""
        return renamed(self.folder, "model.", "language_model.model.")


class HubEncoder:
    """A Whisper folder: config.json, model.safetensors; its decoder is left out."""

    def __init__(self, folder: Path):
        self.folder = folder

    def audio_config(self) -> dict:
        """Returns the encoder's part of config.json."""
        return chosen_fields(self.folder / "config.json", AUDIO_FIELDS)

    def lazy_tensors(self) -> Iterator[LazyTensor]:
        """Yields the encoder's tensors under their Qwen2-Audio names."""
        return renamed(self.folder, "model.encoder.", "audio_tower.")


def chosen_fields(path: Path, names: tuple[str, ...]) -> dict:
    """Returns these fields of a config.json. Raises UserError naming those that it lacks."""
    config = read_json(path)
    missing = [name for name in names if name not in config]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; download the model again.")
    return {name: config[name] for name in names}


def renamed(folder: Path, theirs: str, ours: str) -> Iterator[LazyTensor]:
    """Yields the folder's tensors whose names begin with `theirs`, under names that begin with `ours`."""
    for name, entry in read_folder(folder).items():
        if name.startswith(theirs):
            yield LazyTensor(ours + name.removeprefix(theirs), entry.shape, entry.array)
