"""A real OpenAI-compatible HTTP server on this machine that fails in every way before it answers."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "timeout", "half", "not_json", "no_choices", "no_text", "drop")


class Server:
    """`answer(body)` gives the text of a request's reply, or its choice with message and finish_reason; the
    first tries of each request meet `faults`, in turn.

    `received` and `delivered` count, by the request's content, all tries and those answered in full; `bodies`
    are those answered. `always` answers every request with this HTTP status and code.
    """

    def __init__(self, answer, faults=(), slow=5.0, always=None, delay=0.0):
        self.answer, self.faults, self.slow, self.always, self.delay = answer, faults, slow, always, delay
        self.received, self.delivered = Counter(), Counter()
        self.bodies, self.keys, self.paths = [], set(), set()
        self.message = "no"  # of `always`
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                server._handle(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def _handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        key = json.dumps(body, sort_keys=True)
        with self.lock:
            turn = self.received[key]
            self.received[key] += 1
            self.keys.add(handler.headers["Authorization"])
            self.paths.add(handler.path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.delay:
                time.sleep(self.delay)
            self._reply(handler, body, key, self.faults[turn] if turn < len(self.faults) else None)
        except (BrokenPipeError, ConnectionResetError):  # the client is gone, or `answer` drops it
            handler.close_connection = True
        finally:
            with self.lock:
                self.at_once -= 1

    def _reply(self, handler, body, key, fault):
        if self.always:
            status, code = self.always
            return _send(handler, status, json.dumps({"error": {"message": self.message, "code": code}}))
        if fault in ("429", "500"):
            headers = {"Retry-After": "0.01"} if fault == "429" else {}
            return _send(handler, int(fault), json.dumps({"error": {"message": "later"}}), headers)
        answer = self.answer(body)
        choice = answer if isinstance(answer, dict) else choice_of(answer)
        whole = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, **choice}],
            }
        )
        if fault == "timeout":
            time.sleep(self.slow)
        if fault == "half":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(whole)))
            handler.end_headers()
            handler.wfile.write(whole[: len(whole) // 2].encode())
            handler.close_connection = True
            return None
        if fault == "drop":
            handler.close_connection = True
            return None
        text = {
            "not_json": whole[:-10],
            "no_choices": json.dumps({"id": "1", "choices": []}),
            "no_text": json.dumps(
                {"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]}
            ),
        }.get(fault, whole)
        if fault is None:
            with self.lock:
                self.delivered[key] += 1
                self.bodies.append(body)
        _send(handler, 200, text)


def choice_of(content, finish="stop", **message):
    """Returns a completion's choice; content may be anything that JSON holds."""
    return {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}


def _send(handler, status, text, headers=None):
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(text.encode())))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(text.encode())
