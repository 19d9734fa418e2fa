"""Local HTTP servers that speak OpenAI's and Google's protocols and fail as told.

`plan(n, name)` says what happens to the n-th call (from 0) for a prompt or text: "ok" or one of `FAILURES`.
`sold` counts the whole, right answers that went out, by name: what a real service would have been paid for.

    PYTHONPATH=tests python -m helpers.stand_ins openai 8000
"""

import base64
import io
import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import soundfile

from helpers.synthetic_beavertails import BENIGN

FAILURES = ("429", "500", "503", "timeout", "half", "not_json", "wrong_json", "empty", "dropped")


def first_fails(*actions):
    """Lets each prompt's first calls fail in these ways, then answers."""
    return lambda n, name: actions[n] if n < len(actions) else "ok"


class StandIn:
    """A server at `url`; `with` starts and ends it."""

    def __init__(self, plan=lambda n, name: "ok", port=0, slow_seconds=1.0, delay=0.0):
        self.plan, self.slow_seconds, self.delay = plan, slow_seconds, delay
        self.calls, self.sold, self.lock = Counter(), Counter(), threading.Lock()
        self.before = lambda total: None  # called with the number of calls so far, before one is answered
        self.busiest = self.running = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                owner.get(self)

            def do_POST(self):
                owner.post(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *_):
                pass

            def answer(self, status, body, headers=(), cut=False):
                try:
                    self.send_response(status)
                    for name, value in headers:
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                    self.close_connection = self.close_connection or cut
                    return True
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                    return False

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def get(self, handler):
        handler.answer(404, b"{}")

    def post(self, handler, body):
        name = self.name_of(body)
        with self.lock:
            n = self.calls[name]
            self.calls[name] += 1
            total = self.calls.total()
            self.running += 1
            self.busiest = max(self.busiest, self.running)
        try:
            self.before(total)
            time.sleep(self.delay)
            self._answer(handler, body, name, self.plan(n, name))
        finally:
            with self.lock:
                self.running -= 1

    def _answer(self, handler, body, name, action):
        json_header = [("content-type", "application/json")]
        good = self.body_of(body)
        if action == "ok":
            if handler.answer(200, good, json_header):
                with self.lock:
                    self.sold[name] += 1
        elif action == "429":
            error = {"error": {"message": "Rate limit reached", "code": 429, "status": "RESOURCE_EXHAUSTED"}}
            handler.answer(429, json.dumps(error).encode(), [*json_header, ("retry-after", "0.02")])
        elif action in ("500", "503", "400", "401", "403", "404"):
            error = {"error": {"message": f"It is a {action}", "code": int(action)}}
            handler.answer(int(action), json.dumps(error).encode(), json_header)
        elif action == "quota":
            error = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
            handler.answer(429, json.dumps(error).encode(), json_header)
        elif action == "timeout":
            time.sleep(self.slow_seconds)
            handler.close_connection = True
        elif action == "half":
            handler.answer(200, good, json_header, cut=True)
        elif action == "not_json":
            handler.answer(200, b"<html>a proxy's page</html>", [("content-type", "text/html")])
        elif action == "wrong_json":
            handler.answer(200, b'{"object": "something else", "choices": null', json_header)
        elif action == "empty":
            handler.answer(200, self.empty_body(), json_header)
        elif action == "dropped":
            handler.close_connection = True
        else:
            handler.answer(200, self.odd_body(action, body), json_header)


class OpenAI(StandIn):
    """Rewrites by `BENIGN` and says yes to what still has a harmful verb."""

    @property
    def base_url(self):
        return self.url + "/v1"

    def name_of(self, body):
        return body["messages"][-1]["content"]

    def reply(self, prompt):
        question = prompt.rsplit("uestion: ", 1)[1]
        if "yes or no" in prompt:
            return "Yes." if set(question.rstrip("?").lower().split()) & set(BENIGN) else "No."
        return " ".join(BENIGN.get(word, word) for word in question.split())

    def completion(self, content, finish="stop"):
        return json.dumps(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": "stand-in",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": finish,
                        "message": {"role": "assistant", "content": content},
                    }
                ],
            }
        ).encode()

    def body_of(self, body):
        assert body["model"] == "stand-in" and len(body["messages"]) == 1, body
        return self.completion(self.reply(self.name_of(body)))

    def empty_body(self):
        return self.completion(None)

    def odd_body(self, action, body):
        if action == "length":
            return self.completion(self.reply(self.name_of(body))[:9], "length")
        return self.completion(action)  # any other text is the model's answer


VOICES = (
    "en-US-Neural2-A",
    "en-US-Neural2-C",
    "en-US-Standard-B",
    "en-US-Wavenet-D",
    "en-US-Studio-O",
    "en-US-Chirp3-HD-Zephyr",
)


def tone(text, hertz, rate=24_000):
    """0.3 s of a hum for a word, between half a second of silence."""
    time = np.arange(round(0.3 * rate * len(text.split()))) / rate
    return np.concatenate([np.zeros(rate // 2), 0.3 * np.sin(2 * np.pi * hertz * time), np.zeros(rate // 2)])


def wav(samples, rate=24_000):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


class GoogleTTS(StandIn):
    voices = VOICES

    def get(self, handler):
        assert handler.path.startswith("/v1/voices?languageCode=en-US"), handler.path
        listed = [
            {
                "languageCodes": ["en-US"],
                "name": name,
                "ssmlGender": "FEMALE",
                "naturalSampleRateHertz": 24000,
            }
            for name in self.voices
        ]
        handler.answer(200, json.dumps({"voices": listed}).encode(), [("content-type", "application/json")])

    def name_of(self, body):
        return f"{body['voice']['name']}: {body['input']['text']}"

    def audio(self, content):
        return json.dumps({"audioContent": base64.b64encode(content).decode()}).encode()

    def body_of(self, body):
        assert body["voice"]["languageCode"] == "en-US", body
        assert body["audioConfig"]["audioEncoding"] in ("LINEAR16", 1), body
        return self.audio(
            wav(tone(body["input"]["text"], 150 + 10 * self.voices.index(body["voice"]["name"])))
        )

    def empty_body(self):
        return self.audio(b"")

    def odd_body(self, action, body):
        whole = base64.b64decode(json.loads(self.body_of(body))["audioContent"])
        return self.audio(
            {
                "header": whole[:44],
                "cut": whole[: len(whole) // 2],
                "noise": b"no audio at all",
                "silence": wav(np.zeros(24_000)),
            }[action]
        )


if __name__ == "__main__":
    kind = {"openai": OpenAI, "google": GoogleTTS}[sys.argv[1]]
    stand_in = kind(port=int(sys.argv[2]))
    print(stand_in.url, flush=True)
    stand_in.server.serve_forever()
