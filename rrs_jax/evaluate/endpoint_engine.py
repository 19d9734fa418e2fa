"""Has an OpenAI-compatible server that hears answer: vLLM with the exported folder, or a hosted model."""

import base64
import io
import threading
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import soundfile

from rrs_jax.config.prompts import evaluation_prompt
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig
from rrs_jax.evaluate.engine import Generate, GenerationRequest, OnFinished
from rrs_jax.files import content_hash
from rrs_jax.inputs.audio import SAMPLING_RATE, read_audio

TRIAL_TOKENS = 16  # of the reply to the short question


def endpoint_engine(config: EndpointConfig, sampling: dict, seed: int) -> Generate:
    """Makes the `generate` of an `Engine` that asks the server.

    Replies are not cached here: responses.jsonl keeps each one at once. `sampling` has max_new_tokens,
    greedy, temperature, top_p, top_k and repetition_penalty; None leaves a value to the server. The last two
    are not part of OpenAI's interface; vLLM and SGLang take them.
    """

    def generate(requests: Sequence[GenerationRequest], on_finished: OnFinished) -> None:
        endpoint, lock = Endpoint(config, cache=None), threading.Lock()

        def answer(request: GenerationRequest, endpoint: Endpoint) -> str:
            start = time.monotonic()
            draw = int(content_hash(seed, list(request.key))[:8], 16) % 2**31
            reply = endpoint.ask(messages(request), seed=draw, **_parameters(sampling))
            # In the thread that paid: whatever fails elsewhere, the reply is kept.
            with lock:
                on_finished(request, reply, round(time.monotonic() - start, 3))
            return reply

        endpoint.ask_all([partial(answer, request) for request in requests], lambda index, reply: None)

    return generate


def try_endpoint(config: EndpointConfig, sampling: dict, modes: Sequence[str]) -> None:
    """Asks the server one short question, with a clip of 0.6 s where one of the modes has speech.

    A server that has replied within a day is not asked again. Raises UserError where none of the run's
    requests can succeed.
    """
    mode = next((mode for mode in modes if mode != "text_only"), "text_only")
    text = evaluation_prompt(mode, "How are you?", "plain")
    content: str | list[dict] | None = text
    if mode != "text_only":
        hum = 0.1 * np.sin(np.arange(round(0.6 * SAMPLING_RATE)) * (2 * np.pi * 220 / SAMPLING_RATE))
        content = _content(hum, text)
    parameters = _parameters(sampling | {"max_new_tokens": min(sampling["max_new_tokens"], TRIAL_TOKENS)})
    # Each answer of a sample has a seed of its own, so the trial has one too.
    endpoint, asked = Endpoint(config, cache=None), [{"role": "user", "content": content}]
    endpoint.try_out(lambda: endpoint.ask(asked, seed=0, **parameters), [asked, parameters])


def messages(request: GenerationRequest) -> list[dict]:
    """Returns a request as chat messages: one user turn with the clip, as a wav file, before the text.

    Clip before text is the order of Qwen's templates.
    """
    if request.audio is None:
        return [{"role": "user", "content": request.text}]
    return [{"role": "user", "content": _content(read_audio(request.audio), request.text)}]


def _content(waveform: np.ndarray, text: str | None) -> list[dict]:
    audio = {"type": "input_audio", "input_audio": {"data": wav_base64(waveform), "format": "wav"}}
    return [audio] if text is None else [audio, {"type": "text", "text": text}]


def wav_base64(waveform: np.ndarray) -> str:
    """Encodes a waveform (samples,) of 16 kHz as a wav file of 16 bits; it is cut off at full scale."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _parameters(sampling: dict) -> dict:
    parameters = {name: sampling.get(name) for name in ("temperature", "top_p")}
    if sampling.get("greedy"):
        parameters = {"temperature": 0.0}
    extra = {
        name: sampling[name] for name in ("top_k", "repetition_penalty") if sampling.get(name) is not None
    }
    return parameters | {"max_tokens": sampling["max_new_tokens"]} | ({"extra_body": extra} if extra else {})
