"""Google Cloud Text-to-Speech as an engine, by the official client over REST: the paper's voices (appendix
B).

A voice is `google:en-US-Neural2-A:SPEED:SEMITONES`; the name `google` alone stands for all of the live list
that are en-US and of the types Neural2, Wavenet and Standard. What the service answers is kept in the speech
cache before anything is computed from it, so that no text is bought twice for one voice.
"""

import io
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr

from rrs_jax.data.service import Busy, Refused, Service, seconds_of
from rrs_jax.data.speech_cache import speech_folder
from rrs_jax.errors import SpeechFault, UserError, scrub
from rrs_jax.files import content_hash, write_atomic

LANGUAGE = "en-US"
TYPES = ("Neural2", "Wavenet", "Standard")
# US dollars a million characters: what price lists had in 2024 at the most, without the monthly free part. An
# estimate.
USD_A_MILLION = {"Neural2": 16.0, "Wavenet": 16.0, "Standard": 4.0}
ENDPOINT_VARIABLE = "RRS_JAX_GOOGLE_TTS_ENDPOINT"
SECONDS_A_CALL = 60.0
# Errors of the package requests over a request that no repeat lets pass, such as a proxy whose package lacks.
UNSENDABLE = (
    "InvalidSchema",
    "MissingSchema",
    "InvalidURL",
    "InvalidHeader",
    "InvalidProxyURL",
    "TooManyRedirects",
)
INSTALL = "pip install google-cloud-texttospeech"


class Google:
    """The engine `google`.

    Credentials are the client's own: $GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default
    login`. $RRS_JAX_GOOGLE_TTS_ENDPOINT names another server that speaks the same protocol; one at http://
    gets no credentials.
    """

    name, sample_rate, version = "google", 24_000, "v1"

    def __init__(
        self,
        *,
        timeout: float = SECONDS_A_CALL,
        first_wait: float = 1.0,
        tries: int = 6,
        concurrency: int = 8,
    ):
        try:
            import requests
            from google.api_core import exceptions as errors
            from google.auth import exceptions as auth_errors
            from google.cloud import texttospeech
            from google.protobuf import json_format
        except ImportError as error:
            raise UserError(
                f"Google's voices need the package google-cloud-texttospeech; run: {INSTALL}"
            ) from error
        self.api, self.errors, self.auth_errors, self.requests = texttospeech, errors, auth_errors, requests
        # What the client raises over an answer that is not the protocol's.
        self.malformed = (json_format.Error, ValueError, KeyError, TypeError)
        self.timeout = timeout
        try:
            self.client = _client(os.environ.get(ENDPOINT_VARIABLE))
        except auth_errors.DefaultCredentialsError as error:
            raise UserError(
                "Google's voices need credentials; set GOOGLE_APPLICATION_CREDENTIALS to a service account's"
                " file or run: gcloud auth application-default login"
            ) from error
        # 8 at once stay far below 1,000 requests a minute and below the bandwidth limit that comes sooner.
        self.service = Service(
            "Google Text-to-Speech", concurrency=concurrency, tries=tries, first_wait=first_wait
        )
        self._voices: tuple[str, ...] | None = None

    @property
    def voices(self) -> tuple[str, ...]:
        """The recommended voices of the service's live list, sorted."""
        if self._voices is None:
            listed = self._call(
                lambda: self.client.list_voices(language_code=LANGUAGE, retry=None, timeout=self.timeout)
            )
            names = sorted({voice.name for voice in listed.voices if _type_of(voice.name) in TYPES})
            if not names:
                raise UserError(
                    f"Google Text-to-Speech lists no {LANGUAGE} voice of the types {', '.join(TYPES)}; name"
                    " voices."
                )
            self._voices = tuple(f"{self.name}:{name}:1:0" for name in names)
        return self._voices

    def price(self, text: str, speaker: str, speed: float) -> float:
        """Returns an estimate in US dollars; 0 for what was bought before."""
        if self._kept(text, speaker, speed).is_file():
            return 0.0
        return len(text) * USD_A_MILLION.get(_type_of(speaker), max(USD_A_MILLION.values())) / 1e6

    def say(self, text: str, speaker: str, speed: float) -> np.ndarray:
        """Speaks a text, float32 (samples,). Raises SpeechFault where the service refuses the text."""
        kept = self._kept(text, speaker, speed)
        try:
            if not kept.is_file():
                write_atomic(kept, self._call(lambda: self._synthesise(text, speaker, speed)))
        except Refused as refused:
            if type(refused) is not Refused:
                raise
            raise SpeechFault(
                f"voice {self.name}:{speaker}: {refused} for {text!r}; reword the text."
            ) from refused
        waveform, rate = _decode(kept.read_bytes())
        return (
            waveform
            if rate == self.sample_rate
            else soxr.resample(waveform, rate, self.sample_rate, quality="HQ")
        )

    def _kept(self, text: str, speaker: str, speed: float) -> Path:
        key = content_hash(text, speaker, round(speed, 6), "LINEAR16", self.version)
        return speech_folder() / "google" / key[:2] / f"{key}.wav"

    def _synthesise(self, text: str, speaker: str, speed: float) -> bytes:
        language = "-".join(speaker.split("-")[:2])
        answer = self.client.synthesize_speech(
            input=self.api.SynthesisInput(text=text),
            voice=self.api.VoiceSelectionParams(language_code=language, name=speaker),
            audio_config=self.api.AudioConfig(
                audio_encoding=self.api.AudioEncoding.LINEAR16, speaking_rate=round(speed, 6)
            ),
            retry=None,
            timeout=self.timeout,
        ).audio_content
        try:
            waveform, _ = _decode(answer)
        except soundfile.LibsndfileError as error:
            raise Busy("the audio is cut short or no WAV file") from error
        if not len(waveform) or not np.abs(waveform).max() > 1e-4:
            raise Busy("the audio is empty")
        return answer

    def _call(self, function):
        """Calls the service and returns its answer.

        The client's many errors become Busy, Refused or a sentence for the user.
        """
        errors, requests = self.errors, self.requests
        unsendable = tuple(getattr(requests.exceptions, name) for name in UNSENDABLE)

        def once():
            try:
                return function()
            except (errors.Unauthorized, errors.Forbidden, self.auth_errors.GoogleAuthError) as error:
                raise UserError(
                    f"Google Text-to-Speech refuses the credentials or the project ({_said(error)})."
                ) from error
            except errors.GoogleAPICallError as error:
                said = f"HTTP {error.code}: {_said(error)}"
                if error.code == 429 or error.code == 408 or (error.code or 0) >= 500:
                    raise Busy(said, _retry_after(error), everyone=error.code == 429) from error
                raise Refused(said) from error
            except requests.exceptions.RequestException as error:
                if isinstance(error, unsendable) or "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise UserError(
                        f"Google Text-to-Speech cannot be asked ({_said(error)}); check ${ENDPOINT_VARIABLE},"
                        " the certificates and the proxies in the environment."
                    ) from error
                raise Busy(f"the connection failed ({type(error).__name__})") from error
            except self.malformed as error:
                raise Busy(f"the answer is not what the protocol says ({type(error).__name__})") from error

        return self.service.call(once)


def _client(endpoint: str | None):
    """Makes the official client; `endpoint` is another server that speaks the same protocol."""
    from google.api_core import client_options
    from google.auth import credentials
    from google.cloud import texttospeech

    insecure = (endpoint or "").startswith("http://")
    return texttospeech.TextToSpeechClient(
        transport="rest",
        credentials=credentials.AnonymousCredentials() if insecure else None,
        client_options=client_options.ClientOptions(api_endpoint=endpoint) if endpoint else None,
    )


def _type_of(name: str) -> str:
    """Returns the type in a voice's name: Neural2 of en-US-Neural2-A."""
    return (name.split("-") + ["", ""])[2]


def _decode(content: bytes) -> tuple[np.ndarray, int]:
    """Decodes a WAV file in memory: float32 (samples,) and its rate in Hz; an empty one has no samples."""
    if not content:
        return np.zeros(0, np.float32), 24_000
    declared = int.from_bytes(content[4:8], "little") + 8
    if content[:4] == b"RIFF" and declared > len(content) and declared < 2**32 - 1:
        raise soundfile.LibsndfileError(0, "shorter than its header says")
    channels, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return channels.mean(axis=1), rate


def _retry_after(error) -> float | None:
    response = getattr(error, "response", None)
    return (
        seconds_of(response.headers.get("retry-after"))
        if getattr(response, "headers", None) is not None
        else None
    )


def _said(error: Exception) -> str:
    return scrub(" ".join(str(getattr(error, "message", error)).split()))[:200]
