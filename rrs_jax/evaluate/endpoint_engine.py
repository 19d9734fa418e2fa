"""Has an OpenAI-compatible server that hears answer: vLLM with the exported folder, or a hosted model."""

import base64
import io
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import soundfile

from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig
from rrs_jax.evaluate.engine import Generate, GenerationRequest, OnFinished
from rrs_jax.files import content_hash
from rrs_jax.inputs.audio import SAMPLING_RATE, read_audio


def endpoint_engine(config: EndpointConfig, sampling: dict, seed: int) -> Generate:
    """Makes the `generate` of an `Engine` that asks the server.

    Replies are not cached here: responses.jsonl keeps each one at once. `sampling` has max_new_tokens,
    greedy, temperature, top_p, top_k and repetition_penalty; None leaves a value to the server. The last two
    are not part of OpenAI's interface; vLLM and SGLang take them.
    """

    def generate(requests: Sequence[GenerationRequest], on_finished: OnFinished) -> None:
        endpoint = Endpoint(config, cache=None)
        seconds: dict[int, float] = {}

        def answer(index: int, endpoint: Endpoint) -> str:
            request, start = requests[index], time.monotonic()
            draw = int(content_hash(seed, list(request.key))[:8], 16) % 2**31
            reply = endpoint.ask(messages(request), seed=draw, **_parameters(sampling))
            seconds[index] = round(time.monotonic() - start, 3)
            return reply

        endpoint.ask_all(
            [partial(answer, index) for index in range(len(requests))],
            lambda index, reply: on_finished(requests[index], reply, seconds.pop(index)),
        )

    return generate


def messages(request: GenerationRequest) -> list[dict]:
    """Returns a request as chat messages: one user turn with the clip, as a wav file, before the text.

    Clip before text is the order of Qwen's templates.
    """
    if request.audio is None:
        return [{"role": "user", "content": request.text}]
    audio = {"type": "input_audio", "input_audio": {"data": wav_base64(request.audio), "format": "wav"}}
    text = [] if request.text is None else [{"type": "text", "text": request.text}]
    return [{"role": "user", "content": [audio, *text]}]


def wav_base64(path: Path) -> str:
    """Encodes a clip as a wav file (16 kHz, mono, 16 bits); samples beyond full scale are cut off there."""
    file = io.BytesIO()
    soundfile.write(file, read_audio(path), SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _parameters(sampling: dict) -> dict:
    parameters = {name: sampling.get(name) for name in ("temperature", "top_p")}
    if sampling.get("greedy"):
        parameters = {"temperature": 0.0}
    extra = {
        name: sampling[name] for name in ("top_k", "repetition_penalty") if sampling.get(name) is not None
    }
    return parameters | {"max_tokens": sampling["max_new_tokens"]} | ({"extra_body": extra} if extra else {})
