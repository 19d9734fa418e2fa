"""Requests to an OpenAI-compatible endpoint: many at once, retried, every reply kept by its content."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rrs_jax.data.chat_client import NO_KEY, ChatClient, Rejected, read_key
from rrs_jax.data.service import Busy, Refused, Service, ServiceDown
from rrs_jax.data.trial import ask_once_a_day
from rrs_jax.errors import UserError, shown_address
from rrs_jax.files import cache_folder, content_hash, read_json, write_json

FAILURES_IN_A_ROW = 20  # after which the endpoint counts as gone


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server and how it is asked.

    Attributes:
      base_url: such as http://localhost:8000/v1; a user, a password and a query in it are used and not shown.
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

    @property
    def shown(self) -> str:
        """The address as messages and records show it."""
        return shown_address(self.base_url.strip())

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


class Endpoint:
    """Asks the server's model many requests at once.

    `cache` is the folder of kept replies; None keeps none. A reply is on disk before anybody sees it, so that
    a killed run asks only for what it has not received, and equal requests are sent once.
    """

    def __init__(self, config: EndpointConfig, cache: Path | None):
        self.config, self.cache = config, cache
        self.service = Service(
            config.shown,
            concurrency=config.concurrency,
            tries=config.retries + 1,
            first_wait=config.first_pause,
            down_after=FAILURES_IN_A_ROW,
            down_by=Refused,
        )
        self.key = read_key(config.key_variable) or NO_KEY
        self.client = ChatClient(config.base_url, self.key, config.timeout, self.service)
        self.locks: dict[str, threading.Lock] = {}

    def ask(self, messages: Sequence[dict], *, draw: int = 0, **parameters: Any) -> str:
        """Returns the reply's text, "" where the model ended without one or a content filter withheld it.

        `draw` tells apart requests of equal content that are to be answered anew. Raises Refused after the
        last try and for a request that the endpoint refuses, UserError where no request can succeed.
        """
        parameters = {name: value for name, value in parameters.items() if value is not None}
        if self.cache is None:
            return self._send(messages, parameters)
        path = self._kept(messages, draw, parameters)
        with self.locks.setdefault(path.stem, threading.Lock()):
            if path.is_file():
                return read_json(path)["reply"]
            reply = self._send(messages, parameters)
            write_json(path, {"model": self.config.model, "reply": reply})
        return reply

    def try_out(self, ask: Callable[[], object], what: object) -> None:
        """Calls `ask`, which asks the server one small question, unless it has replied within a day.

        `what` is a JSON value that tells the questions apart. Raises UserError where the server cannot be
        used.
        """
        config = self.config
        try:
            ask_once_a_day([config.base_url, config.model, self.key, what], ask)
        except Refused as refused:
            raise UserError(
                f"{config.shown}: the model {config.model} does not answer a short question"
                f" ({refused.reason}); nothing was begun. Check the address and the model's name."
            ) from refused

    def has_reply(self, messages: Sequence[dict], *, draw: int = 0, **parameters: Any) -> bool:
        """Returns whether the reply to this request is kept."""
        return self.cache is not None and self._kept(messages, draw, parameters).is_file()

    def forget(self, messages: Sequence[dict], *, draw: int = 0, **parameters: Any) -> None:
        """Removes a kept reply that is of no use, so that the same request is sent again."""
        if self.cache is not None:
            self._kept(messages, draw, parameters).unlink(missing_ok=True)

    def ask_all(
        self, requests: Sequence[Callable[["Endpoint"], str]], on_reply: Callable[[int, str], None]
    ) -> None:
        """Runs `request(self)` for each and calls `on_reply(index, text)` in the caller's thread.

        Raises one UserError that counts the requests that failed, when all others are done or the endpoint
        counts as gone.
        """
        failures, gone = [], ""
        try:
            for index, result in self.service.each(lambda i: requests[i](self), range(len(requests))):
                if isinstance(result, Refused):
                    failures.append(result.reason)
                else:
                    on_reply(index, result)
        except ServiceDown as down:
            failures.append(down.reason)
            gone = " and it counts as gone"
        if failures:
            raise UserError(
                f"{self.config.shown}: {len(failures)} of {len(requests)} requests failed{gone} (the last:"
                f" {failures[-1]}); all other replies are kept, and the same command asks for the rest."
            )

    def _send(self, messages: Sequence[dict], parameters: dict) -> str:
        return self.service.call(lambda: self._once(messages, parameters))

    def _once(self, messages: Sequence[dict], parameters: dict) -> str:
        config = self.config
        try:
            reply = self.client.complete(config.model, messages, **parameters)
        except Rejected as rejected:
            what = f"refuses the model {config.model}" if rejected.cause != "address" else "cannot be asked"
            raise UserError(
                f"{config.shown}: {what} ({rejected}); check the address, the model's name and the key in"
                f" ${config.key_variable}."
            ) from rejected
        if reply.text is None and not reply.refusal:
            raise Busy("the reply holds no text")
        return reply.text or reply.refusal or ""

    def _kept(self, messages: Sequence[dict], draw: int, parameters: dict) -> Path:
        """Returns where the reply to a request is kept."""
        sent = {name: value for name, value in parameters.items() if value is not None}
        key = content_hash(self.config.shown, self.config.model, list(messages), sent, draw)
        return self.cache / key[:2] / f"{key}.json"


def reply_cache() -> Path:
    """Returns the folder of judges' replies: `replies` in $RRS_JAX_CACHE, else in ~/.cache/rrs_jax."""
    return cache_folder() / "replies"
