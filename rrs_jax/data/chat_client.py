"""Chat completions of an OpenAI-compatible server, by the client `openai`.

The client's many errors become the three that matter here: a try that may succeed later (Busy), a request
that the server refuses (Refused), and a server that refuses every request (Rejected).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rrs_jax.data.service import Busy, Refused, Service, seconds_of
from rrs_jax.errors import UserError

PASSING = (408, 409, 425, 429)  # may succeed later, as any 5xx
REJECTING = {401: "key", 402: "quota", 403: "key", 404: "model"}
OUT_OF_QUOTA = "insufficient_quota"  # the code of a 429 that does not pass


class Rejected(Exception):
    """No request with this key and model can succeed. `cause` is "key", "model" or "quota"."""

    def __init__(self, reason: str, cause: str):
        super().__init__(reason)
        self.cause = cause


@dataclass(frozen=True)
class Reply:
    """A completion's first choice; `finish` is its finish_reason, such as "stop" or "length"."""

    text: str | None
    finish: str | None
    refusal: str | None

    @property
    def filtered(self) -> bool:
        """True where the server's content filter withheld the text."""
        return self.finish == "content_filter"


class ChatClient:
    """A server at `base_url` (None: OpenAI's); `timeout` in seconds, of one try.

    Repeating is the task of `service`: the client's own repeats would neither pause other calls nor read a
    broken reply as a failure.
    """

    def __init__(self, base_url: str | None, key: str, timeout: float, service: Service):
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "An OpenAI-compatible server needs the package openai; run: pip install openai"
            ) from error
        self.openai, self.service, self.timeout = openai, service, timeout
        self.client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)

    def complete(self, model: str, messages: Sequence[dict], **parameters: Any) -> Reply:
        """Asks once and returns the reply. Raises Busy, Refused or Rejected."""
        openai = self.openai
        try:
            raw = self.client.chat.completions.with_raw_response.create(
                model=model, messages=list(messages), **parameters
            )
            choice = raw.parse().choices[0]
            message = choice.message
            reply = Reply(message.content, choice.finish_reason, getattr(message, "refusal", None))
        except openai.APITimeoutError as error:
            raise Busy(f"no reply within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise Busy(f"the connection failed ({error.__cause__ or error})") from error
        except openai.APIStatusError as error:
            raise _status_error(error) from error
        except (openai.APIError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise Busy(f"the reply is no chat completion ({type(error).__name__})") from error
        if not isinstance(reply.text, str | None):
            raise Busy("the reply is no chat completion (its content is no text)")
        if raw.headers.get("x-ratelimit-remaining-requests") == "0":
            self.service.pause(seconds_of(raw.headers.get("x-ratelimit-reset-requests")) or 0.0)
        return reply


def _status_error(error: Any) -> Busy | Refused | Rejected:
    status, headers = error.status_code, error.response.headers
    body = error.body if isinstance(error.body, dict) else {}
    said = " ".join(str(body.get("message") or error.message or "").split())[:200]
    reason = f"HTTP {status}" + (f": {said}" if said else "")
    if status in REJECTING:
        return Rejected(reason, REJECTING[status])
    if body.get("code") == OUT_OF_QUOTA:
        return Rejected(reason, "quota")
    if status in PASSING or status >= 500:
        return Busy(reason, _asked_seconds(headers), everyone=status == 429)
    return Refused(reason)


def _asked_seconds(headers: Any) -> float | None:
    """Returns the wait that the server asks for, by the first header that says it."""
    milliseconds = seconds_of(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    waits = (seconds_of(headers.get(name)) for name in ("retry-after", "x-ratelimit-reset-requests"))
    return next((seconds for seconds in waits if seconds is not None), None)
