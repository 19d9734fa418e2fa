"""Log-mel features: those of Whisper's extractor on the 30 s clip, at the cost of the clip itself."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rrs_jax.errors import UserError

POWER_FLOOR = 1e-10
MAX_FREQUENCY = 8000.0
CONVOLUTION_REACH = 2  # frames past the last valid one that the encoder's two convolutions touch


@dataclass(frozen=True)
class MelConfig:
    """Settings that decide a clip's features and the number of its tokens.

    The first five are fields of a `WhisperFeatureExtractor`. `partial_frame`: the last hop counts although
    samples do not fill it. `extra_tokens`: rows that the encoder itself puts before and behind a clip.
    """

    num_mel_bins: int = 128
    sampling_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    max_seconds: int = 30
    partial_frame: bool = True
    extra_tokens: int = 0

    @property
    def max_samples(self) -> int:
        """Samples of the longest clip."""
        return self.max_seconds * self.sampling_rate

    @property
    def max_frames(self) -> int:
        """Frames of the longest clip."""
        return self.max_samples // self.hop_length

    def feature_length(self, samples: int) -> int:
        """Number m of frames that count in the encoder's mask."""
        return feature_length(samples, self.hop_length) if self.partial_frame else samples // self.hop_length

    def frames(self, samples: int) -> int:
        """Number of frames of a clip's features: its own and those that the convolutions touch behind
        them."""
        return min(feature_length(samples, self.hop_length) + CONVOLUTION_REACH, self.max_frames)

    def token_count(self, m: int) -> int:
        """Embeddings, and so tokens, of a clip with m frames."""
        return audio_token_count(m) + self.extra_tokens

    @classmethod
    def from_dict(cls, fields: dict, source: str) -> "MelConfig":
        """The settings of a preprocessor_config.json's content; `source` names the file in messages."""
        kind = fields.get("feature_extractor_type", "WhisperFeatureExtractor")
        if kind != "WhisperFeatureExtractor":
            raise UserError(
                f"{source}: feature_extractor_type {kind} is unknown; WhisperFeatureExtractor is supported."
            )
        if fields.get("dither", 0.0) or fields.get("do_normalize", False):
            raise UserError(f"{source}: dither and do_normalize are not supported; set them to 0 and false.")
        try:
            return cls(
                num_mel_bins=int(fields["feature_size"]),
                sampling_rate=int(fields["sampling_rate"]),
                n_fft=int(fields["n_fft"]),
                hop_length=int(fields["hop_length"]),
                max_seconds=int(fields["chunk_length"]),
            )
        except KeyError as error:
            raise UserError(f"{source}: field {error} is missing; fetch the file again.") from error


def log_mel(waveform: np.ndarray, config: MelConfig) -> tuple[np.ndarray, int]:
    """Features, float32 (bins, frames), and feature length m of a waveform, float32 (samples,) at the
    config's rate.

    The extractor pads the waveform with zeros to its longest clip, of 3000 frames where that is 30 s. Here
    frames = min(ceil(samples / hop) + 2, 3000): those of the clip and the two further ones that the encoder's
    convolutions touch. No later frame holds a sample of the clip, so the loudest value, to which the floor is
    relative, is the same. Raises UserError for an empty clip and for one that the extractor would cut.
    """
    samples = len(waveform)
    if not 0 < samples <= config.max_samples:
        raise UserError(
            f"an audio clip has {samples / config.sampling_rate:.2f} s; it must have more than 0 and "
            f"at most {config.max_seconds} s: split it."
        )
    m = config.feature_length(samples)
    frames = config.frames(samples)
    half = config.n_fft // 2
    end = (frames - 1) * config.hop_length + half  # first sample past the last window
    signal = np.zeros(min(end, config.max_samples))
    signal[:samples] = waveform
    # Windows are centred, so both ends of the 30 s are mirrored; only a clip near 30 s reaches the right one.
    signal = np.pad(signal, (half, max(end - config.max_samples, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(signal, config.n_fft)[:: config.hop_length]
    spectrum = np.fft.rfft(windows * _hann(config.n_fft))
    power = spectrum.real**2 + spectrum.imag**2  # (frames, n_fft / 2 + 1)
    filters = mel_filters(config.num_mel_bins, config.sampling_rate, config.n_fft)
    features = np.log10(np.maximum(power @ filters, POWER_FLOOR)).T
    features = (np.maximum(features, features.max() - 8.0) + 4.0) / 4.0
    return np.ascontiguousarray(features, dtype=np.float32), m


def pad_features(
    clips: Sequence[tuple[np.ndarray, int]], frames_bucket: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clips of `log_mel` in one batch: features, float32 (C, bins, frames_bucket), and lengths, int32 (C,).

    Each clip is filled with the value that silence has behind it. Raises ValueError where a clip is longer
    than the bucket.
    """
    longest = max(features.shape[1] for features, _ in clips)
    if longest > frames_bucket:
        raise ValueError(f"a clip has {longest} frames, the bucket {frames_bucket}")
    padded = np.empty((len(clips), clips[0][0].shape[0], frames_bucket), np.float32)
    for row, (features, _) in zip(padded, clips, strict=True):
        frames = features.shape[1]
        row[:, :frames] = features
        row[:, frames:] = silence_value(features)
    return padded, np.array([m for _, m in clips], np.int32)


def silence_value(features: np.ndarray) -> float:
    """The feature of zero samples in this clip: 2 below its largest value, at least -1.5 (1e-10)."""
    return max(-1.5, float(features.max()) - 2.0)


def feature_length(samples: int, hop_length: int = 160) -> int:
    """Number of frames that count in the encoder's mask: m = ceil(samples / hop)."""
    return -(-samples // hop_length)


def audio_token_count(m: int) -> int:
    """Audio tokens of a clip with m frames: the convolutions halve them, the pooling halves them again."""
    return ((m - 1) // 2 + 1 - 2) // 2 + 1


@functools.cache
def _hann(n_fft: int) -> np.ndarray:
    """Periodic Hann window, float64 (n_fft,)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)


@functools.cache
def mel_filters(num_mel_bins: int, sampling_rate: int = 16_000, n_fft: int = 400) -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale, 0 to 8000 Hz, float64 (n_fft / 2 + 1, num_mel_bins)."""
    bins = np.linspace(0, sampling_rate / 2, n_fft // 2 + 1)
    corners = _mel_to_hertz(np.linspace(0, _hertz_to_mel(MAX_FREQUENCY), num_mel_bins + 2))
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rise = (bins[:, None] - low) / (centre - low)
    fall = (high - bins[:, None]) / (high - centre)
    return np.maximum(np.minimum(rise, fall), 0.0) * 2.0 / (high - low)


# Slaney's scale: 15 mels up to 1000 Hz, linear; then 27 mels for each factor of 6.4, logarithmic.
def _hertz_to_mel(hertz: float) -> float:
    return 15.0 * hertz / 1000.0 if hertz < 1000.0 else 15.0 + 27.0 * np.log(hertz / 1000.0) / np.log(6.4)


def _mel_to_hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15.0, mels * 1000.0 / 15.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0))
