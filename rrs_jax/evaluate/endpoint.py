"""Requests to an OpenAI-compatible endpoint: many at once, retried, every reply kept by its content.

A reply is on disk before anybody sees it, so a killed run asks only for what it has not received, and equal
requests are sent once. What can pass (429, 408, 409, 5xx, time-outs, broken connections, replies that are no
chat completion) is asked again with growing pauses; what cannot (a wrong key, an unknown model) ends the
work.
"""

import json
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rrs_jax.errors import UserError
from rrs_jax.files import content_hash, read_json, write_json

PASSING = (408, 409, 425, 429)  # beside 5xx: asked again
ENDING = (401, 402, 403, 404)  # no request can succeed
LONGEST_PAUSE = 60.0  # seconds
FAILURES_IN_A_ROW = 20  # after which the endpoint counts as gone


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server and how it is asked.

    Attributes:
      base_url: such as http://localhost:8000/v1.
      model: the model's name there; None where a judge's own name holds it.
      key_variable: environment variable that holds the key.
      concurrency: requests at once.
      timeout: seconds that one try may take.
      retries: further tries of a request whose failure may pass.
      first_pause: seconds before the second try; doubled with every further one.
    """

    base_url: str
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    first_pause: float = 1.0

    @classmethod
    def from_group(cls, group: ConfigDict, model: str | None = None) -> "EndpointConfig":
        """Reads the group `judge` or `endpoint` of a run's config; `model` takes the place of the group's."""
        return cls(
            base_url=group.url,
            model=model or group.model,
            key_variable=group.key_variable,
            concurrency=group.concurrency,
            timeout=group.timeout,
            retries=group.retries,
        )


class RequestFailed(Exception):
    """One request could not be answered; the others may be."""


class Endpoint:
    """Asks `config.model`. `cache` is the folder of kept replies; None keeps none."""

    def __init__(self, config: EndpointConfig, cache: Path | None):
        try:
            import openai
        except ImportError as error:
            raise UserError("An endpoint needs the package openai; run: pip install openai") from error
        self.openai, self.config, self.cache = openai, config, cache
        # Local servers take any key, and the client insists on one.
        key = os.environ.get(config.key_variable) or "none"
        self.client = openai.OpenAI(
            base_url=config.base_url, api_key=key, timeout=config.timeout, max_retries=0
        )
        self.stop = threading.Event()
        self.locks: dict[str, threading.Lock] = {}

    def ask(self, messages: Sequence[dict], *, draw: int = 0, **parameters: Any) -> str:
        """The reply's text, "" where the endpoint's content filter withheld it.

        draw: tells apart requests of equal content that are to be answered anew.
        Raises RequestFailed after the last try and for a request that the endpoint refuses, UserError where
        no request can succeed.
        """
        parameters = {name: value for name, value in parameters.items() if value is not None}
        key = content_hash(self.config.base_url, self.config.model, list(messages), parameters, draw)
        if self.cache is None:
            return self._send(messages, parameters)
        path = self.cache / key[:2] / f"{key}.json"
        with self.locks.setdefault(key, threading.Lock()):
            if path.is_file():
                return read_json(path)["reply"]
            reply = self._send(messages, parameters)
            write_json(path, {"model": self.config.model, "reply": reply})
        return reply

    def ask_all(
        self, requests: Sequence[Callable[["Endpoint"], str]], on_reply: Callable[[int, str], None]
    ) -> None:
        """Runs `request(self)` for each, `concurrency` at once; `on_reply(index, text)` in the caller's
        thread.

        Raises one UserError that counts the requests that failed, when all others are done.
        """
        pool = ThreadPoolExecutor(self.config.concurrency)
        failures, in_a_row = [], 0
        try:
            futures = {pool.submit(request, self): index for index, request in enumerate(requests)}
            for future in as_completed(futures):
                try:
                    reply = future.result()
                except RequestFailed as error:
                    failures.append(str(error))
                    in_a_row += 1
                    if in_a_row >= FAILURES_IN_A_ROW:
                        break
                    continue
                in_a_row = 0
                on_reply(futures[future], reply)
        finally:
            # Requests in flight end and are kept; no other is begun, and none is tried again.
            self.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self.stop.clear()
        if failures:
            raise UserError(
                f"{self.config.base_url}: {len(failures)} of {len(requests)} requests"
                f" failed{' and it counts as gone' if in_a_row >= FAILURES_IN_A_ROW else ''} (the last:"
                f" {failures[-1]}); all other replies are kept, and the same command asks for the rest."
            )

    def _send(self, messages: Sequence[dict], parameters: dict) -> str:
        pause = self.config.first_pause
        for attempt in range(self.config.retries + 1):
            try:
                return self._once(messages, parameters)
            except _Passing as error:
                if attempt == self.config.retries or self.stop.is_set():
                    raise RequestFailed(f"{error}, at try {attempt + 1}") from error
                wait = (
                    error.retry_after if error.retry_after is not None else pause * random.uniform(0.5, 1.0)
                )
            if self.stop.wait(min(wait, LONGEST_PAUSE)):
                raise RequestFailed("interrupted")
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _once(self, messages: Sequence[dict], parameters: dict) -> str:
        openai, config = self.openai, self.config
        try:
            completion = self.client.chat.completions.create(
                model=config.model, messages=list(messages), **parameters
            )
        except openai.APITimeoutError as error:
            raise _Passing(f"no reply within {config.timeout:g} s") from error
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        except openai.APIConnectionError as error:
            raise _Passing(f"the connection failed ({error.__cause__ or error})") from error
        except (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _Passing("the reply is not JSON") from error
        try:
            choice = completion.choices[0]
            text, filtered = choice.message.content, choice.finish_reason == "content_filter"
        except (AttributeError, IndexError, TypeError) as error:
            raise _Passing("the reply is no chat completion") from error
        if text is None and (filtered or getattr(choice.message, "refusal", None)):
            return choice.message.refusal or ""
        if not isinstance(text, str):
            raise _Passing("the reply holds no text")
        return text

    def _status_error(self, error: Any) -> Exception:
        status, config = error.status_code, self.config
        body = error.body if isinstance(error.body, dict) else {}
        said = str(body.get("message") or error.message or "").splitlines()
        reason = f"HTTP {status}" + (f": {said[0][:200]}" if said else "")
        if status in ENDING or body.get("code") == "insufficient_quota":
            self.stop.set()
            return UserError(
                f"{config.base_url}: refuses the model {config.model} ({reason}); check the address, the"
                f" model's name and the key in ${config.key_variable}."
            )
        if status in PASSING or status >= 500:
            return _Passing(reason, _seconds(error.response.headers.get("retry-after")))
        return RequestFailed(reason)


class _Passing(Exception):
    """What another try may mend. `retry_after`: the seconds that the server asked to wait."""

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(float(header), 0.0)
    except ValueError:  # a date, which few servers send
        return None


def reply_cache() -> Path:
    """Where judges' replies are kept: `replies` in $RRS_JAX_CACHE, else in ~/.cache/rrs_jax."""
    return Path(os.environ.get("RRS_JAX_CACHE") or "~/.cache/rrs_jax").expanduser() / "replies"
