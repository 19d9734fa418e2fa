"""Chat templates: programs in a model's folder, which decide what the model reads.

Jinja's sandbox keeps them from files and Python's insides, but not from computing for ever or filling the
memory. Foreign ones are therefore rendered by a process of their own (`rrs_jax.inputs.template_worker`).
"""

import contextlib
import functools
import hashlib
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from rrs_jax.inputs import template_worker

SECONDS = 10  # for one prompt
# SHA-256 of templates whose text is known: the mini's, and Qwen2-Audio's in transformers.
KNOWN = frozenset(
    {
        "0f25de27d1ba69cf8bca61e742ebc345ce002f4bf3bcc4775e5b02e858b549a1",
        "27d3d4c4d9935c5a2237ecd3d27e042758937a380bc550f7c7b77a6d9416aeda",
    }
)


def render(tokenizer: Any, template: str, messages: Sequence[dict]) -> str:
    """Returns the prompt of these messages, with the beginning of an answer.

    Raises ValueError, or what the template raises, where it cannot be rendered within bounds.
    """
    if hashlib.sha256(template.encode()).hexdigest() in KNOWN:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    return _worker(template).render(messages, tokenizer.special_tokens_map)


class _Worker:
    def __init__(self, template: str):
        self.template, self.lock = template, threading.Lock()
        self.process: subprocess.Popen | None = None

    def render(self, messages: Sequence[dict], tokens: dict[str, str]) -> str:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.process = self._started()
            said = self._say({"messages": messages, "tokens": tokens}) and self.process.stdout.readline()
        if not said:
            raise ValueError(f"it takes more than {SECONDS} s or too much memory")
        answer = json.loads(said)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["text"]

    def _started(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-P", template_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in the terminal is for this process
        )
        weakref.finalize(self, process.kill)
        self.process = process
        self._say({"template": self.template, "seconds": SECONDS})
        return process

    def _say(self, value: dict) -> bool:
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()
            return True
        return False


@functools.lru_cache(4)
def _worker(template: str) -> _Worker:
    return _Worker(template)
