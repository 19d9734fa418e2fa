"""A Hugging Face hub on this computer: who somebody is, repositories, and uploads of small files."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_good"


class Hub(ThreadingHTTPServer):
    """Attributes:
    role: of the token.
    made: bodies of the requests for new repositories.
    files: what was uploaded, by repository and path.
    refuses_uploads: it answers 403 to them.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.role, self.made, self.files, self.refuses_uploads = "write", [], {}, False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/api/whoami-v2":
            return self._answer(404, {"error": f"GET {self.path}"})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        token = {"accessToken": {"role": self.server.role, "displayName": "t"}}
        return self._answer(200, {"type": "user", "name": "me", "orgs": [], "auth": token})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        kind, _, rest = self.path.removeprefix("/api/").partition("/")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            if wanted.get("organization", "me") != "me":
                return self._answer(403, {"error": "You don't have the rights to create a model there"})
            self.server.made.append(wanted)
            return self._answer(200, {"url": f"{self.server.address}/me/{wanted['name']}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        repository, _, action = rest.rpartition("/main")[0].rpartition("/")
        if kind == "models" and action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if kind == "models" and action == "commit":
            if self.server.refuses_uploads:
                return self._answer(403, {"error": "storage is full"})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[repository, line["value"]["path"]] = content
            return self._answer(
                200, {"commitUrl": f"{self.server.address}/{repository}/commit/0", "commitOid": "0" * 40}
            )
        return self._answer(404, {"error": f"POST {self.path}"})

    def _answer(self, status: int, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
