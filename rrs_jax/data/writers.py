"""Language models that are asked while a data set is built, and the ledger that keeps every answer.

A writer has a `name`, which stands in the ledger, and `ask(requests, on_answer)`: it calls
`on_answer(request, answer)` for each request as it is answered, and Refused in place of an answer that will
never come.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rrs_jax.data.service import Busy, Refused, Service, seconds_of
from rrs_jax.errors import UserError
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl
from rrs_jax.progress import Progress


@dataclass(frozen=True)
class Request:
    """One question to a writer; another `attempt` is another try of the same prompt."""

    prompt: str
    attempt: int = 0


OnAnswer = Callable[[Request, "str | Refused"], None]


class Writer(Protocol):
    name: str

    def ask(self, requests: Sequence[Request], on_answer: OnAnswer) -> None: ...


class Ledger:
    """Answers in a JSON-lines file, each written to disk before anything uses it, so none is asked for
    twice."""

    def __init__(self, path: str | Path, writer: Writer):
        self.path, self.writer = Path(path), writer
        self._lock = threading.Lock()
        self._answers = {row["key"]: row["answer"] for row in read_growing_jsonl(self.path)}

    def ask(self, requests: Sequence[Request]) -> list[str | None]:
        """The answers in the requests' order; None where the writer refuses for good."""
        missing = [request for request in dict.fromkeys(requests) if self._key(request) not in self._answers]
        if missing:
            self.writer.ask(missing, self._keep)
        if lacking := [request for request in missing if self._key(request) not in self._answers]:
            raise UserError(
                f"{self.writer.name}: {len(lacking)} of {len(missing)} questions have no answer yet; those"
                f" answered are in {self.path}, and the same command asks for the rest."
            )
        return [self._answers[self._key(request)] for request in requests]

    def _keep(self, request: Request, answer: "str | Refused") -> None:
        refused = isinstance(answer, Refused)
        row = {
            "key": self._key(request),
            "writer": self.writer.name,
            "attempt": request.attempt,
            "prompt": request.prompt,
            "answer": None if refused else answer,
        } | ({"refused": str(answer)} if refused else {})
        with self._lock:
            append_jsonl(self.path, [row])
            self._answers[row["key"]] = row["answer"]

    def _key(self, request: Request) -> str:
        return content_hash(self.writer.name, request.prompt, request.attempt)


class OpenAIWriter:
    """A model behind any endpoint that speaks OpenAI's chat completions, by the client `openai`.

    base_url and key: None takes $OPENAI_BASE_URL and $OPENAI_API_KEY, as the client does. `temperature` None
      sends none.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key: str | None = None,
        *,
        concurrency: int = 8,
        tries: int = 6,
        timeout: float = 60.0,
        first_wait: float = 1.0,
        temperature: float | None = None,
    ):
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "A writer behind an endpoint needs the package openai; run: pip install 'rrs-jax[data]'"
            ) from error
        self.openai, self.model, self.name = openai, model, f"openai:{model}"
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        if key is None:
            raise UserError(
                "OPENAI_API_KEY is not set; set it, or name the endpoint of a server of your own by"
                " --writer_url."
            )
        # Repeats are this project's: the client's own do not pause its other calls, nor read a broken answer
        # as a failure.
        self.client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)
        self.settings = {} if temperature is None else {"temperature": temperature}
        where = f"{self.name} at {self.client.base_url}"
        self.service = Service(where, concurrency=concurrency, tries=tries, first_wait=first_wait)

    def ask(self, requests: Sequence[Request], on_answer: OnAnswer) -> None:
        def one(request: Request) -> None:
            # In the thread that paid: an interruption elsewhere cannot come between an answer and the disk.
            on_answer(request, self.service.call(lambda: self._once(request)))

        with Progress(len(requests), f"asking {self.model}", unit="answers") as progress:
            for request, result in self.service.each(one, requests):
                if type(result) is Refused:
                    on_answer(request, result)
                progress.update()

    def _once(self, request: Request) -> str:
        openai = self.openai
        messages = [{"role": "user", "content": request.prompt}]
        try:
            raw = self.client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, **self.settings
            )
            completion = raw.parse()
            choice = completion.choices[0]
            answer, finish = choice.message.content, choice.finish_reason
        except openai.APITimeoutError as error:
            raise Busy("no answer in time") from error
        except openai.APIConnectionError as error:
            raise Busy(f"the connection broke ({error.__cause__ or error})") from error
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        except (openai.APIError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise Busy(f"the answer is not what the protocol says ({type(error).__name__})") from error
        if raw.headers.get("x-ratelimit-remaining-requests") == "0":
            self.service.pause(seconds_of(raw.headers.get("x-ratelimit-reset-requests")) or 0.0)
        if finish == "content_filter":
            raise Refused("the service's content filter stopped the answer")
        if not isinstance(answer, str) or not answer.strip() or finish == "length":
            raise Busy("the answer is empty or cut short")
        return answer

    def _status_error(self, error) -> Exception:
        status, headers = error.status_code, error.response.headers
        said = " ".join(str(error.message).split())[:200]
        if status in (401, 403):
            return UserError(
                f"{self.service.name}: refuses the key (status {status}: {said}); check OPENAI_API_KEY."
            )
        if status == 404:
            return UserError(
                f"{self.service.name}: no such model or address ({said}); check --writer and --writer_url."
            )
        if getattr(error, "code", None) == "insufficient_quota":
            return UserError(
                f"{self.service.name}: the account's quota is used up ({said}); what was answered is kept."
            )
        if status in (408, 409, 429) or status >= 500:
            waits = (headers.get("retry-after"), headers.get("x-ratelimit-reset-requests"))
            milliseconds = seconds_of(headers.get("retry-after-ms"))
            asked = [seconds for text in waits if (seconds := seconds_of(text)) is not None]
            seconds = milliseconds / 1000 if milliseconds is not None else (asked or [None])[0]
            return Busy(f"status {status}: {said}", seconds, everyone=status == 429)
        return Refused(f"status {status}: {said}")
