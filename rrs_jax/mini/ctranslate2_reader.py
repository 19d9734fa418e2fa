"""Whisper's encoder from a CTranslate2 `model.bin`.

Layout of the file, little-endian: version (uint32), name of the specification (string), its revision
(uint32), number of variables (uint32), then a variable each: name (string), rank (uint8), sizes (uint32
each), dtype (uint8), number of bytes (uint32), bytes; at the end the number of aliases (uint32) and pairs of
strings. A string is its length with the closing zero (uint16) and its bytes.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.files import DAMAGE, reading, reason_of
from rrs_jax.mini.lazy_tensor import LazyTensor

VERSION = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

# CTranslate2's name inside encoder/layer_i -> ours; the fused query, key and value projection is split apart
# below.
LAYER_NAMES = {
    "self_attention/layer_norm/gamma": "self_attn_layer_norm.weight",
    "self_attention/layer_norm/beta": "self_attn_layer_norm.bias",
    "self_attention/linear_1/weight": "self_attn.out_proj.weight",
    "self_attention/linear_1/bias": "self_attn.out_proj.bias",
    "ffn/layer_norm/gamma": "final_layer_norm.weight",
    "ffn/layer_norm/beta": "final_layer_norm.bias",
    "ffn/linear_0/weight": "fc1.weight",
    "ffn/linear_0/bias": "fc1.bias",
    "ffn/linear_1/weight": "fc2.weight",
    "ffn/linear_1/bias": "fc2.bias",
}
TOP_NAMES = {
    "encoder/conv1/weight": "conv1.weight",
    "encoder/conv1/bias": "conv1.bias",
    "encoder/conv2/weight": "conv2.weight",
    "encoder/conv2/bias": "conv2.bias",
    "encoder/position_encodings/encodings": "embed_positions.weight",
    "encoder/layer_norm/gamma": "layer_norm.weight",
    "encoder/layer_norm/beta": "layer_norm.bias",
}


class CTranslate2Encoder:
    """The encoder of an unquantised Whisper `model.bin`; arrays are read-only views of the mapped file."""

    def __init__(self, path: Path):
        """Raises UserError where the file is no such model, is truncated, or lacks arrays."""
        self.path = path
        self.arrays = read_variables(path)
        self.num_layers = 0
        while f"encoder/layer_{self.num_layers}/self_attention/linear_0/weight" in self.arrays:
            self.num_layers += 1
        fused = [
            f"encoder/layer_{i}/self_attention/linear_0/{kind}"
            for i in range(self.num_layers)
            for kind in ("weight", "bias")
        ]
        needed = [
            *TOP_NAMES,
            *fused,
            "encoder/num_heads",
            *(f"encoder/layer_{i}/{name}" for i in range(self.num_layers) for name in LAYER_NAMES),
        ]
        missing = sorted(set(needed) - set(self.arrays))
        surplus = sorted(
            name
            for name in self.arrays
            if name.startswith("encoder/") and name not in needed and self.arrays[name].ndim
        )
        if missing or surplus or not self.num_layers:
            raise UserError(
                f"{path}: arrays of the encoder missing: {', '.join(missing) or 'its layers'}; "
                f"not understood: {', '.join(surplus) or 'none'}; an unquantised Whisper model is needed."
            )

    def audio_config(self) -> dict:
        """Returns the encoder's part of config.json."""
        with reading(self.path):
            return self._audio_config()

    def _audio_config(self) -> dict:
        width, num_mel_bins, _ = self.arrays["encoder/conv1/weight"].shape
        return {
            "num_mel_bins": num_mel_bins,
            "d_model": width,
            "encoder_layers": self.num_layers,
            "encoder_attention_heads": int(self.arrays["encoder/num_heads"]),
            "encoder_ffn_dim": self.arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
            "max_source_positions": self.arrays["encoder/position_encodings/encodings"].shape[0],
        }

    def lazy_tensors(self) -> Iterator[LazyTensor]:
        """Yields the encoder's tensors under their Qwen2-Audio names."""
        for theirs, ours in TOP_NAMES.items():
            yield LazyTensor.of(f"audio_tower.{ours}", self.arrays[theirs])
        for layer in range(self.num_layers):
            theirs, ours = f"encoder/layer_{layer}/", f"audio_tower.layers.{layer}."
            for name, our_name in LAYER_NAMES.items():
                yield LazyTensor.of(ours + our_name, self.arrays[theirs + name])
            for kind in ("weight", "bias"):
                with reading(f"{self.path}, layer {layer}"):
                    thirds = np.split(self.arrays[f"{theirs}self_attention/linear_0/{kind}"], 3)
                for name, third in zip(("q_proj", "k_proj", "v_proj"), thirds, strict=True):
                    if (name, kind) == (
                        "k_proj",
                        "bias",
                    ):  # Whisper's key has no bias; the fused one holds zeros
                        if np.any(third):
                            raise UserError(
                                f"{self.path}: the key of encoder layer {layer} has a bias, "
                                "which no Whisper model has; fetch the file again."
                            )
                        continue
                    yield LazyTensor.of(f"{ours}self_attn.{name}.{kind}", third)


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Reads all variables of a CTranslate2 file, aliases included, as views of the mapped file.

    Raises UserError where the file is truncated, has bytes left over, or holds a dtype that NumPy lacks.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); fetch it again.") from error
    cursor = Cursor(data)
    try:
        version = cursor.number("I")
        if version != VERSION:
            raise UserError(f"{path}: has CTranslate2 version {version}; version {VERSION} is understood.")
        cursor.string()  # the specification's name
        cursor.number("I")  # its revision
        arrays = dict(cursor.variable() for _ in range(cursor.number("I")))
        aliases = dict((cursor.string(), cursor.string()) for _ in range(cursor.number("I")))
        arrays |= {alias: arrays[name] for alias, name in aliases.items()}
    except DAMAGE as error:
        raise UserError(
            f"{path}: is truncated or no CTranslate2 model ({reason_of(error)}); fetch it again."
        ) from error
    if cursor.position != len(data):
        raise UserError(f"{path}: has {len(data) - cursor.position} bytes too many; fetch it again.")
    return arrays


class Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap):
        self.data, self.position = data, 0

    def number(self, code: str) -> int:
        """Reads a number of `struct`'s type `code`."""
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        """Reads a string."""
        end = self.position + 2 + self.number("H")
        text = self.data[self.position : end]
        self.position = end
        return text.rstrip(b"\0").decode()

    def variable(self) -> tuple[str, np.ndarray]:
        """Reads a variable's name and array."""
        name = self.string()
        shape = tuple(self.number("I") for _ in range(self.number("B")))
        dtype = np.dtype(DTYPES[self.number("B")]).newbyteorder("<")
        num_bytes = self.number("I")
        array = np.frombuffer(self.data, dtype, num_bytes // dtype.itemsize, self.position).reshape(shape)
        self.position += num_bytes
        return name, array
