"""Speech engines.

An engine has `name`, `sample_rate` in Hz, and, once made, `voices` (names of those that are recommended),
`version` and `say(text, speaker, speed) -> float32 (samples,)`. One that asks a paid service also has
`service` (a `rrs_jax.data.service.Service`) and `price(text, speaker, speed)` in US dollars.
"""

import ctypes
import importlib.metadata
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from rrs_jax.data.google_voice import Google
from rrs_jax.errors import UserError
from rrs_jax.files import content_hash


class Hibari:
    """The package `hibari-tts` (Apache-2.0): a small neural voice; the speaker `heart` lies inside its wheel.

    Its other speakers are files of 8 MB each that hibari itself downloads on first use.
    """

    name, sample_rate = "hibari", 24_000
    voices = (
        "hibari:heart:1:0",
        "hibari:heart:0.9:0",
        "hibari:heart:1.1:0",
        "hibari:heart:1:2",
        "hibari:heart:1.1:1",
        "hibari:heart:1.1:-1",
        "hibari:heart:0.9:-2",
        "hibari:heart:1:-3",
    )

    def __init__(self):
        try:
            import hibari
        except ImportError as error:
            raise UserError(
                "The hibari voices need the package hibari-tts; run: pip install hibari-tts"
            ) from error
        self.hibari = hibari
        self.version = importlib.metadata.version("hibari-tts")
        self.speakers = {}

    def say(self, text: str, speaker: str, speed: float) -> np.ndarray:
        """Speaks a text, float32 (samples,); the same samples in every run."""
        if speaker not in self.speakers:
            try:
                # One thread: many clips are spoken side by side, one process a core.
                self.speakers[speaker] = self.hibari.Hibari(voice=speaker, threads=1)
            except (KeyError, ValueError, RuntimeError, OSError) as error:
                raise UserError(
                    f"hibari cannot load its speaker {speaker!r} ({error}); use heart."
                ) from error
        seed = (
            int(content_hash(text, speaker, speed), 16) % 2**32
        )  # of the breath noise: the same in every run
        return self.speakers[speaker](text, speed=speed, seed=seed)


class Flite:
    """The command `flite` of CMU Flite (Debian package `flite`, permissive licence).

    It starts a process for every clip.
    """

    name, sample_rate = "flite", 16_000
    voices = ("flite:slt:1:0", "flite:rms:1:0", "flite:awb:1:0", "flite:kal16:1:0")

    def __init__(self):
        self.command = shutil.which("flite")
        if self.command is None:
            raise UserError("The flite voices need the program flite on the PATH; run: apt-get install flite")
        about = subprocess.run([self.command, "--version"], capture_output=True, text=True, check=False)
        versions = [word for word in (about.stdout + about.stderr).split() if word.startswith("flite-")]
        self.version = versions[0].removeprefix("flite-") if versions else "unknown"

    def say(self, text: str, speaker: str, speed: float) -> np.ndarray:
        """Speaks a text, float32 (samples,). Raises UserError for an unknown speaker."""
        if f"flite:{speaker}:1:0" not in self.voices:  # flite itself would quietly take its first speaker
            raise UserError(
                f"flite has no speaker {speaker!r} at 16 kHz; use one of {', '.join(self.voices)}."
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.wav"
            stretch = f"duration_stretch={1 / speed:.4f}"
            command = [self.command, "-voice", speaker, "--setf", stretch, "-t", text, "-o", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode or not path.exists():
                raise UserError(f"flite failed with the speaker {speaker!r}: {done.stderr.strip()[:200]}")
            waveform, _ = soundfile.read(path, dtype="float32")
        return waveform


class Espeak:
    """espeak-ng, formant voices, through the package `espeakng-loader`.

    The package is GPL-3, hence no dependency of this project. A speaker is a voice of espeak-ng with its
    variant behind a plus: `en-us`, `en-us+f2`, `en-us+m3`.
    """

    name, sample_rate = "espeak", 22_050
    voices = ("espeak:en-us:1:0", "espeak:en-us+f2:1:0", "espeak:en-us+m3:1:0")
    words_a_minute = 165

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "The espeak voices need the package espeakng-loader; run: pip install espeakng-loader"
            ) from error
        self.version = importlib.metadata.version("espeakng-loader")
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        folder = espeakng_loader.get_data_path().encode()
        synchronous = 2
        if self.library.espeak_Initialize(synchronous, 0, folder, 0) != self.sample_rate:
            raise UserError(
                f"espeak-ng cannot start with its data in {folder.decode()}; install espeakng-loader again."
            )
        self.samples = []
        self.callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )(self._receive)  # kept, or ctypes frees it while the library calls it
        self.library.espeak_SetSynthCallback(self.callback)

    def say(self, text: str, speaker: str, speed: float) -> np.ndarray:
        """Speaks a text, float32 (samples,). Raises UserError for an unknown speaker."""
        if self.library.espeak_SetVoiceByName(speaker.encode()):
            raise UserError(f"espeak-ng has no speaker {speaker!r}; use one of {', '.join(self.voices)}.")
        rate_parameter, utf8, data = 1, 1, text.encode()
        self.library.espeak_SetParameter(rate_parameter, round(self.words_a_minute * speed), 0)
        self.samples.clear()
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, utf8, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate([np.zeros(0, np.int16), *self.samples]).astype(np.float32) / 2**15

    def _receive(self, samples, count: int, _) -> int:
        if samples and count > 0:
            self.samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


ENGINES = {engine.name: engine for engine in (Hibari, Flite, Espeak, Google)}
