"""Pictures of clips as the models' audio encoders see them: log-mel features, small, as PNG."""

import base64
import html
import struct
import zlib
from pathlib import Path

import numpy as np

from rrs_jax.data.voices import SAMPLING_RATE
from rrs_jax.data.waveforms import read_waveform

BINS, WINDOW, HOP, MAX_HERTZ = 128, 400, 160, 8000  # Whisper's extractor: bins, samples, samples, Hz
RANGE, FLOOR = 8.0, 1e-10  # powers of ten below the loudest value, and the least power
WIDTH, BINS_A_ROW = 120, 2  # pixels of the longest picture, and mel bins in one pixel's height
# Sixteen steps from silence to the loudest value, evenly lighter (matplotlib's magma).
PALETTE = bytes.fromhex(
    "000004 0b0924 20114b 3b0f70 57157e 721f81 8c2981 a8327d"
    "c43c75 de4968 f1605d fa7f5e fe9f6d febf84 fddea0 fcfdbf"
)


class Clip:
    """A clip as a notebook shows it: its picture, with a player where the notebook can have one."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def _repr_png_(self) -> bytes:
        return picture(log_mel(read_waveform(self.path)))

    def _repr_html_(self) -> str:
        sound, drawn = (
            base64.b64encode(data).decode() for data in (self.path.read_bytes(), self._repr_png_())
        )
        kind = html.escape(self.path.suffix.removeprefix("."))
        size = 'width="480" height="128" alt="log-mel features of the clip"'
        return (
            f'<img src="data:image/png;base64,{drawn}" {size}><br>'
            f'<audio controls src="data:audio/{kind};base64,{sound}"></audio>'
        )


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log-mel features, float32 (128, frames), of float32 (samples,) at 16 kHz, a frame for each 10 ms.

    Computed by librosa; they are those of Whisper's feature extractor with 128 bins, which Qwen2-Audio and
    Qwen2.5-Omni have, without the silence behind the clip.
    """
    from librosa.feature import melspectrogram

    frames = -(-len(waveform) // HOP)
    followed = np.pad(waveform, (0, WINDOW))  # by the silence in which the extractor pads a clip
    centred = np.pad(followed, (WINDOW // 2, 0), mode="reflect")
    power = melspectrogram(
        y=centred, sr=SAMPLING_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=BINS, fmax=MAX_HERTZ, center=False
    )[:, :frames]
    features = np.log10(np.maximum(power, FLOOR))
    return ((np.maximum(features, features.max() - RANGE) + 4.0) / 4.0).astype(np.float32)


def picture(features: np.ndarray) -> bytes:
    """Draws features (bins, frames) as a PNG of 3 kB: time to the right, high tones above, loud ones light.

    Neighbouring frames are averaged to 120 columns at most, two bins to a row.
    """
    bins, frames = features.shape
    edges = np.linspace(0, frames, min(WIDTH, frames) + 1).astype(int)
    rows = features.reshape(bins // BINS_A_ROW, BINS_A_ROW, frames).mean(axis=1)
    pixels = np.add.reduceat(rows, edges[:-1], axis=1) / np.diff(edges)
    top = features.max()
    least = top - RANGE / 4  # the features' own scale
    steps = len(PALETTE) // 3
    levels = np.clip((pixels - least) / (top - least) * steps, 0, steps - 1).astype(np.uint8)
    return _png(levels[::-1])


def _png(levels: np.ndarray) -> bytes:
    """A PNG of palette colours, 4 bits each, of uint8 (rows, columns)."""
    height, width = levels.shape
    levels = np.pad(levels, ((0, 0), (0, width % 2)))
    packed = (levels[:, 0::2] << 4) | levels[:, 1::2]
    lines = np.pad(packed, ((0, 0), (1, 0))).tobytes()  # each behind a 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", PALETTE), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
