"""The request of docs/serving.md, run as it is printed, against what our own evaluation sends."""

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import soundfile

from rrs_jax.config.prompts import PROMPT_T
from rrs_jax.evaluate.endpoint import EndpointConfig
from rrs_jax.evaluate.endpoint_engine import endpoint_engine
from rrs_jax.evaluate.engine import GenerationRequest

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"


class Recorder(BaseHTTPRequestHandler):
    """Keeps each request's path and body; answers "Yes."."""

    asked: list[tuple[str, dict]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, json.loads(body)))
        message = {"role": "assistant", "content": "Yes."}
        reply = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_) -> None:
        pass


def test_the_printed_request_is_that_of_our_evaluation(tmp_path):
    assert shutil.which("curl")
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "question.wav", rng.normal(0, 0.1, 9_000), 16_000, subtype="PCM_16")
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    (printed,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", printed.replace("http://localhost:8000", address)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        config = EndpointConfig(f"{address}/v1", "rrs", key_variable="NO_KEY")
        ask = endpoint_engine(config, {"greedy": True, "max_new_tokens": 256}, 0)
        request = GenerationRequest(("harmful", "q", "audio_text", 0), PROMPT_T, tmp_path / "question.wav", 0)
        replies = []
        ask([request], lambda _, text, seconds: replies.append(text))
    finally:
        server.shutdown()
        server.server_close()
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "Yes." and replies == ["Yes."]
    (path, by_hand), (other, by_us) = Recorder.asked
    assert path == other == "/v1/chat/completions"
    by_us.pop("seed")  # an answer's own
    assert by_hand == by_us
