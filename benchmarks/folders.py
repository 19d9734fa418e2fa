"""Model folders with random or no weights, and what else a run needs of a folder: a tokenizer of whole
words."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_REFUSAL, PROMPT_T
from rrs_jax.files import write_json
from rrs_jax.testing.tensors import tensors_of
from rrs_jax.weights.safetensors_io import write_header

WORDS = (  # as Qwen's tokenizer cuts the prompts, of whose words it cuts one in two
    r"\n| ?[^\W\d]+|\d|[^\w\s]| "
)
PIECE = 2**25  # numbers that are drawn once and written again and again


def write_sparse_weights(file: Path, values: dict, dtype: str) -> None:
    """Tensors with names and shapes that take no room; they read as zeros."""
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), write_header(stream, tensors_of(values, dtype), {}))


def write_random_weights(file: Path, values: dict, dtype: str) -> int:
    """Normal numbers of std 0.02, the same ones again and again, on the disk itself; returns the file's
    bytes."""
    tensors = tensors_of(values, dtype)
    kind = tensors[0][1]
    numbers = (0.02 * np.random.default_rng(0).standard_normal(PIECE, np.float32)).astype(kind)
    with file.open("wb") as stream:
        total = write_header(stream, tensors, {})
        missing = total - stream.tell()
        data = memoryview(numbers.view(np.uint8))
        for start in range(0, missing, len(data)):
            stream.write(data[: min(len(data), missing - start)])
        stream.flush()
        os.fsync(stream.fileno())
    forget(file)
    return total


def forget(file: Path) -> None:
    """Asks the operating system to keep nothing of the file in memory, so that a reader reads the disk."""
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_small_files(folder: Path, values: dict) -> None:
    """config.json, features and generation settings, and a tokenizer that cuts the prompts as Qwen's does."""
    write_json(folder / "config.json", values)
    inner = values.get("thinker_config", values)
    bins = inner.get("audio_config", {}).get("num_mel_bins", 128)
    features = {
        "feature_size": bins,
        "sampling_rate": 16_000,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 30,
    }
    write_json(
        folder / "preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor", **features}
    )
    write_tokenizer(folder, inner.get("audio_token_index", 151_646))
    write_json(folder / "generation_config.json", {"eos_token_id": 1, "pad_token_id": 0})


def write_tokenizer(folder: Path, audio_token_id: int) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|audio_bos|>", "<|audio_eos|>"]
    texts = (
        *PROMPT_POOL,
        PROMPT_T,
        PROMPT_REFUSAL,
        "system\nYou are a helpful assistant.\nuser\nAudio 1: \nassistant\nI",
    )
    words = dict.fromkeys(word for text in texts for word in re.findall(WORDS, text))
    vocabulary = {word: place for place, word in enumerate([*special, "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary | {"<|AUDIO|>": audio_token_id}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*special, "<|AUDIO|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"},
    )


@contextlib.contextmanager
def working_folder(name: str) -> Iterable[Path]:
    """Under $TMPDIR; gone afterwards."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix=f"rrs_jax_{name}_") as place:
        yield Path(place)
