"""Chat completions of an OpenAI-compatible server, by the client `openai`.

The client's many errors become the three that matter here: a try that may succeed later (Busy), a request
that the server refuses (Refused), and a server that refuses every request (Rejected). What cannot pass at
all, such as a key that no header can hold, is a UserError before the first request.
"""

import base64
import importlib
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from rrs_jax.config.kinds import address_problem
from rrs_jax.data.reasoning import OPENING
from rrs_jax.data.service import Busy, Refused, Service, seconds_of
from rrs_jax.errors import UserError, keep_secret, scrub, shown_address
from rrs_jax.files import replace_surrogates

PASSING = (408, 409, 425, 429)  # may succeed later, as any 5xx
REJECTING = {401: "key", 402: "quota", 403: "key", 404: "model", 405: "address"}
# Codes that servers send with any status, such as 400 for a model that they do not have.
CODES = {"insufficient_quota": "quota", "model_not_found": "model", "invalid_api_key": "key"}
# Names of the HTTP library's errors over a request that cannot be sent at all.
UNSENDABLE = ("LocalProtocolError", "UnsupportedProtocol", "InvalidURL", "TooManyRedirects", "CookieConflict")
MISSING_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
NO_KEY = "none"  # local servers take any key, and the client insists on one


class Rejected(Exception):
    """No request with this key, model and address can succeed.

    `cause` is "key", "model", "quota" or "address".
    """

    def __init__(self, reason: str, cause: str):
        super().__init__(reason)
        self.cause = cause


@dataclass(frozen=True)
class Reply:
    """A completion's first choice; `finish` is its finish_reason, such as "stop" or "length".

    The text begins with `<think>` where the model thought and gave no answer. It is None where the server
    sent none, "" where the completion ended without any.
    """

    text: str | None
    finish: str | None
    refusal: str | None

    @property
    def filtered(self) -> bool:
        """True where the server's content filter withheld the text."""
        return self.finish == "content_filter"


def read_key(variable: str) -> str:
    """Returns the API key in an environment variable, without white space around it; "" where there is none.

    Raises UserError, which does not show the key, for one that no HTTP header can hold.
    """
    key = os.environ.get(variable, "").strip()
    keep_secret(key)
    for number, character in enumerate(key, start=1):
        if not character.isascii() or not character.isprintable():
            what = "a control character" if character.isascii() else "no ASCII character"
            raise UserError(
                f"${variable}: character {number} of the key is {what}; copy the key again, without anything"
                " beside it."
            )
    return key


class ChatClient:
    """A server at `base_url` (None: OpenAI's); `timeout` in seconds, of one try.

    Repeating is the task of `service`: the client's own repeats would neither pause other calls nor read a
    broken reply as a failure. Raises UserError for an address, or a proxy in the environment, that cannot be
    used.
    """

    def __init__(self, base_url: str | None, key: str, timeout: float, service: Service):
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "An OpenAI-compatible server needs the package openai; run: pip install openai"
            ) from error
        key = key.strip()  # a line's end comes with a key that is read from a file
        self.openai, self.service, self.timeout = openai, service, timeout
        self.replied = False  # to any request so far
        if key != NO_KEY:
            keep_secret(key)
        options: dict[str, Any] = {"api_key": key, "timeout": timeout, "max_retries": 0}
        if base_url is not None:
            options |= _address_options(base_url)
        self.client = _make_client(openai, options)

    def complete(self, model: str, messages: Sequence[dict], **parameters: Any) -> Reply:
        """Asks once and returns the reply. Raises Busy, Refused or Rejected."""
        openai = self.openai
        try:
            raw = self.client.chat.completions.with_raw_response.create(
                model=model, messages=list(messages), **parameters
            )
            choice = raw.parse().choices[0]
            reply = _reply(choice)
        except openai.APITimeoutError as error:
            raise Busy(f"no reply within {self.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise self._connection_error(error) from error
        except openai.APIStatusError as error:
            raise _status_error(error) from error
        except UnicodeEncodeError as error:
            if error.encoding == "ascii":
                raise Rejected("a header holds a character that is not ASCII", "address") from error
            raise Refused("the request holds text that UTF-8 cannot") from error
        except (openai.APIError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise Busy(f"the reply is no chat completion ({type(error).__name__})") from error
        self.replied = True
        if raw.headers.get("x-ratelimit-remaining-requests") == "0":
            self.service.pause(seconds_of(raw.headers.get("x-ratelimit-reset-requests")) or 0.0)
        return reply

    def _connection_error(self, error: Exception) -> Busy | Rejected:
        """Returns Rejected for what no repeat helps against.

        A host that has no name, or a wrong certificate, passes only where the server has replied before.
        """
        reason = scrub(str(error.__cause__ or error))
        for cause in _causes(error):
            if type(cause).__name__ in UNSENDABLE or isinstance(cause, UnicodeError):
                return Rejected(reason, "address")
            lasting = isinstance(cause, ssl.SSLCertVerificationError) or "WRONG_VERSION_NUMBER" in str(cause)
            lasting |= isinstance(cause, socket.gaierror) and cause.errno in MISSING_HOST
            if lasting and not self.replied:
                return Rejected(reason, "address")
        return Busy(f"the connection failed ({reason})")


def _address_options(base_url: str) -> dict[str, Any]:
    """Returns the client's options for an address, whose user and password become a header."""
    if problem := address_problem(base_url):
        raise UserError(
            f"{shown_address(base_url)}: {problem}; give an address such as http://localhost:8000/v1."
        )
    parts = urlsplit(base_url.strip())
    place, query = parts.netloc.rpartition("@")[2], dict(parse_qsl(parts.query, keep_blank_values=True))
    options: dict[str, Any] = {"base_url": urlunsplit((parts.scheme, place, parts.path, "", ""))}
    if query:
        options["default_query"] = query
    if parts.username is not None or parts.password is not None:
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        keep_secret(password)
        written = base64.b64encode(f"{user}:{password}".encode()).decode()
        keep_secret(written)
        options["default_headers"] = {"Authorization": f"Basic {written}"}
    return options


def _make_client(openai: Any, options: dict[str, Any]) -> Any:
    """Makes the client.

    The HTTP library makes a transport for every proxy in the environment, also for those that are not used
    for this host; where one cannot be made, a host without a proxy is asked directly.
    """
    try:
        return openai.OpenAI(**options)
    except ImportError as error:
        if urllib.request.proxy_bypass(urlsplit(options.get("base_url") or "https://api.openai.com").netloc):
            library = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__)
            direct = openai.DefaultHttpxClient(transport=library.HTTPTransport())
            return openai.OpenAI(**options, http_client=direct)
        raise UserError(
            "A SOCKS proxy in the environment (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY) needs a further package;"
            " run: pip install socksio, or unset the variable."
        ) from error
    except Exception as error:  # the library's InvalidURL has no base of its own
        raise UserError(
            f"{shown_address(options.get('base_url') or 'https://api.openai.com')}: the client cannot be made"
            f" ({scrub(str(error))}); check the address, and the proxies in the environment."
        ) from error


def _reply(choice: Any) -> Reply:
    message = choice.message
    refusal = getattr(message, "refusal", None)
    seen, thought = _texts_of(message.content)
    for field in ("reasoning_content", "reasoning"):
        thought = thought or _texts_of(getattr(message, field, None))[0]
    text = None if message.content is None and choice.finish_reason is None else seen
    if not seen.strip() and thought.strip() and not refusal:
        text = f"{OPENING}\n{thought}"
    return Reply(
        None if text is None else replace_surrogates(text),
        choice.finish_reason,
        replace_surrogates(refusal) if isinstance(refusal, str) else None,
    )


def _texts_of(content: Any) -> tuple[str, str]:
    """Returns the text and the thoughts of a message's content: a text, None, a part, or a list of parts.

    Raises ValueError where it is something else.
    """
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts, thoughts = [], []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        of_thoughts = any(word in str(kind) for word in ("think", "reason"))
        (thoughts if of_thoughts else texts).extend(_strings(part))
    return "".join(texts), "".join(thoughts)


def _strings(part: Any) -> Iterator[str]:
    """Yields the texts of one part, which servers write as "text", or by the name of the part's type."""
    if isinstance(part, str):
        yield part
        return
    if not isinstance(part, dict):
        raise ValueError(f"content is a {type(part).__name__}")
    names = ("text", str(part.get("type")), "content", "thinking", "reasoning", "summary", "refusal")
    for inner in (part[name] for name in dict.fromkeys(names) if part.get(name)):
        for value in inner if isinstance(inner, list) else [inner]:
            yield from _strings(value)
        return


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status_error(error: Any) -> Busy | Refused | Rejected:
    status, headers = error.status_code, error.response.headers
    body = error.body if isinstance(error.body, dict) else {}
    said = scrub(replace_surrogates(" ".join(str(body.get("message") or error.message or "").split())))[:200]
    reason = f"HTTP {status}" + (f": {said}" if said else "")
    if cause := CODES.get(str(body.get("code"))) or REJECTING.get(status):
        return Rejected(reason, cause)
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
