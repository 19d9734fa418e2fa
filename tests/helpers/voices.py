"""A voice that hums, and the pitch of what it says."""

import numpy as np


class Tones:
    """An engine that hums: the speaker's name is the frequency in Hz, a word lasts 0.3 s at speed 1."""

    name, sample_rate, version = "tones", 24_000, "1"
    voices = ("tones:200", "tones:200:1.2", "tones:200:1:2", "tones:300")

    def say(self, text, speaker, speed):
        time = np.arange(round(0.3 * len(text.split()) / speed * self.sample_rate)) / self.sample_rate
        silence = np.zeros(self.sample_rate // 2)
        return np.concatenate([silence, 0.2 * np.sin(2 * np.pi * float(speaker) * time), silence])


def pitch(waveform):
    """Hz of the strongest frequency."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return np.argmax(spectrum) * 16_000 / len(waveform)
