"""Language models that are asked while a data set is built, and the ledger that keeps every answer."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rrs_jax.data.chat_client import NO_KEY, ChatClient, Rejected, Reply, read_key
from rrs_jax.data.reasoning import answer_of
from rrs_jax.data.service import GaveUp, Refused, Service
from rrs_jax.data.trial import ask_once_a_day
from rrs_jax.errors import UserError, shown_address
from rrs_jax.files import append_jsonl, content_hash, read_growing_jsonl
from rrs_jax.progress import Progress, say

# What a user can do, by the cause for which a server refuses every request.
ADVICE = {
    "key": "refuses the key ({}); check OPENAI_API_KEY",
    "model": "no such model or address ({}); check --writer and --writer_url",
    "quota": "the account's quota is used up ({}); what was answered is kept",
    "address": "cannot be asked ({}); check --writer_url and the proxies in the environment",
}


@dataclass(frozen=True)
class Request:
    """One question to a writer; a higher `attempt` asks the same prompt anew."""

    prompt: str
    attempt: int = 0


SMALL = Request("Answer with one word, yes or no.\n##Question: Is two more than one?")

OnAnswer = Callable[[Request, "str | Refused"], None]


class Writer(Protocol):
    """A language model that answers requests; `name` stands in the ledger."""

    name: str

    def ask(self, requests: Sequence[Request], on_answer: OnAnswer) -> None:
        """Calls `on_answer(request, answer)` as each request is answered; Refused is an answer for good."""


class Ledger:
    """Keeps a writer's answers in a JSON-lines file, so that none is asked for twice.

    Each answer is on disk before anything uses it.
    """

    def __init__(self, path: str | Path, writer: Writer):
        self.path, self.writer = Path(path), writer
        self._lock = threading.Lock()
        self._answers = {row["key"]: row["answer"] for row in read_growing_jsonl(self.path, say)}

    def ask(self, requests: Sequence[Request]) -> list[str | None]:
        """Returns the answers in the requests' order; None where the writer refuses for good.

        An answer is what follows the writer's thoughts, and empty where these do not end. Raises UserError
        where answers are lacking; those that came are kept.
        """
        missing = [request for request in dict.fromkeys(requests) if self._key(request) not in self._answers]
        if missing:
            self.writer.ask(missing, self._keep)
        if lacking := [request for request in missing if self._key(request) not in self._answers]:
            raise UserError(
                f"{self.writer.name}: {len(lacking)} of {len(missing)} questions have no answer yet; those"
                f" answered are in {self.path}, and the same command asks for the rest."
            )
        answers = (self._answers[self._key(request)] for request in requests)
        return [None if answer is None else (answer_of(answer) or "") for answer in answers]

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
    """A model behind an OpenAI-compatible endpoint.

    Args:
      base_url, key: None takes $OPENAI_BASE_URL and $OPENAI_API_KEY, as the client `openai` does.
      tries, first_wait: of one request, as for `Service`.
      timeout: seconds that one try may take.
      temperature: None sends none.
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
        self.model, self.name = model, f"openai:{model}"
        base_url = base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or None
        self.base_url, self.key = base_url, key or read_key("OPENAI_API_KEY") or (NO_KEY if base_url else "")
        if not self.key:
            raise UserError(
                "OPENAI_API_KEY is not set; set it, or name the endpoint of a server of your own by"
                " --writer_url."
            )
        self.settings = {} if temperature is None else {"temperature": temperature}
        where = f"{self.name} at {shown_address(base_url) if base_url else 'api.openai.com'}"
        self.service = Service(where, concurrency=concurrency, tries=tries, first_wait=first_wait)
        self.client = ChatClient(base_url, self.key, timeout, self.service)

    def try_out(self) -> None:
        """Asks one small question, unless the server has answered it within a day.

        Raises UserError where no answer can be had.
        """

        def ask() -> None:
            try:
                self._answer(SMALL)
            except Refused as refused:
                raise UserError(
                    f"{refused}; nothing was begun. Check --writer and --writer_url."
                ) from refused

        ask_once_a_day([self.base_url, self.model, self.key, self.settings, SMALL.prompt], ask)

    def ask(self, requests: Sequence[Request], on_answer: OnAnswer) -> None:
        """Asks for all answers, several at once. Raises UserError where the service is down."""

        def one(request: Request) -> None:
            # In the thread that paid: an interruption elsewhere cannot come between an answer and the disk.
            on_answer(request, self._answer(request))

        with Progress(len(requests), f"asking {self.model}", unit="answers") as progress:
            for request, result in self.service.each(one, requests):
                if type(result) is Refused:
                    on_answer(request, result)
                progress.update()

    def _answer(self, request: Request) -> str:
        """Returns the answer; one that is empty or cut is asked for once more, since each is paid."""
        for _ in range(2):
            reply = self.service.call(lambda: self._once(request))
            text, cut = reply.text or "", reply.finish == "length"
            if (answer_of(text) or "").strip() and not cut:
                return text
        reason = "the answer is empty"
        if cut:
            reason = (
                "the answer is cut at the server's limit of tokens; raise it, or let the model think less"
            )
        raise GaveUp(f"{self.service.name}: {reason}", reason)

    def _once(self, request: Request) -> Reply:
        try:
            messages = [{"role": "user", "content": request.prompt}]
            reply = self.client.complete(self.model, messages, **self.settings)
        except Rejected as rejected:
            raise UserError(f"{self.service.name}: {ADVICE[rejected.cause].format(rejected)}.") from rejected
        if reply.filtered:
            raise Refused("the service's content filter stopped the answer")
        return reply
