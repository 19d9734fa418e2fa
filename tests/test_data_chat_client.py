"""The client of an OpenAI-compatible server: keys, addresses, proxies, and every form of a reply."""

import socket
import ssl
import subprocess
import sys
import time

import pytest

from helpers.misbehaving_server import Server, choice_of
from rrs_jax.data.chat_client import ChatClient, Rejected, _causes, read_key
from rrs_jax.data.service import Busy, Service
from rrs_jax.data.trial import ask_once_a_day
from rrs_jax.data.writers import OpenAIWriter
from rrs_jax.errors import UserError, scrub, scrubbing
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig

KEY = "sk-NOT-A-REAL-KEY"
QUESTION = [{"role": "user", "content": "How are you?"}]
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")


@pytest.fixture(autouse=True)
def a_shell_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(scrubbing, "_keys", set())
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "shared"))
    for name in (*PROXIES, "NO_PROXY", "no_proxy", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def endpoint(url, **changes):
    return Endpoint(EndpointConfig(url, "m", **{"retries": 3, "first_pause": 0.01} | changes), None)


# Keys


@pytest.mark.parametrize("before", ["", " ", "\n", "\t", "\u00a0"])
@pytest.mark.parametrize("behind", ["", "\n", "\r", "\r\n", " \n", "\u2003"])
def test_white_space_around_a_key_is_taken_off(before, behind, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", before + KEY + behind)
    assert read_key("OPENAI_API_KEY") == KEY
    with Server(lambda body: "Well.") as server:
        assert endpoint(server.url).ask(QUESTION) == "Well."
        assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "wrong", ["\u2014", "\ufeff", "\u200b", "\n", "\r", "\x7f", "\x1b", "é", "：", "\ud83d"]
)
@pytest.mark.parametrize("place", [3, 6, 9])
def test_a_key_that_no_header_can_hold_is_said_at_once_and_not_shown(wrong, place, monkeypatch):
    monkeypatch.setattr("rrs_jax.data.chat_client.os.environ", {"MY_KEY": KEY[:place] + wrong + KEY[place:]})
    with pytest.raises(UserError, match=rf"^\$MY_KEY: character {place + 1} of the key is ") as error:
        endpoint("http://127.0.0.1:9/v1", key_variable="MY_KEY")
    assert KEY[:place] not in str(error.value) and KEY[place:] not in str(error.value)


def test_a_server_that_repeats_the_key_does_not_have_it_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server(lambda body: "x", always=(401, None)) as server:
        server.message = f"Incorrect API key provided: {KEY}."
        with pytest.raises(UserError, match=r"refuses the model m \(HTTP 401: .*\[key\]") as error:
            endpoint(server.url).ask(QUESTION)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("variable", ["OPENAI_ORG_ID", "OPENAI_PROJECT_ID"])
@pytest.mark.parametrize("value", ["org—1", "org\n1"])
def test_another_header_that_cannot_be_sent_is_said_at_once(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with Server(lambda body: "x") as server:
        with pytest.raises(UserError, match=r"cannot be asked \("):
            endpoint(server.url).ask(QUESTION)
        assert not server.received


# Addresses, proxies and connections


@pytest.mark.parametrize(
    "wrong", ["127.0.0.1:8145/v1", "localhost:8000", "ftp://h/v1", "http://", "http://h:x/v1"]
)
def test_what_is_no_address_is_said_before_anything_is_sent(wrong):
    with pytest.raises(UserError, match="give an address such as http://localhost:8000/v1"):
        endpoint(wrong)
    with pytest.raises(UserError, match="give an address such as http://localhost:8000/v1"):
        OpenAIWriter("m", wrong)


def test_user_password_and_query_of_an_address_are_sent_and_never_shown():
    with Server(lambda body: "Well.") as server:
        url = server.url.replace("http://", "http://alice:hunter%202@") + "?api-version=s3cret-1"
        assert endpoint(url).ask(QUESTION) == "Well."
        (header,) = server.keys
        assert header == "Basic YWxpY2U6aHVudGVyIDI=" and server.paths == {
            "/v1/chat/completions?api-version=s3cret-1"
        }
        server.always = (404, None)
        with pytest.raises(UserError, match="HTTP 404") as error:
            endpoint(url).ask(QUESTION)
    for secret in ("alice", "hunter", "s3cret", "YWxp"):
        assert secret not in str(error.value)


SOCKS = """
import sys
sys.modules["socksio"] = None  # as where the package is not installed
from rrs_jax.errors import exit_status
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig
with exit_status() as status:
    print(Endpoint(EndpointConfig(sys.argv[1], "m"), None).ask([{"role": "user", "content": "?"}]))
sys.exit(status.code)
"""


@pytest.mark.parametrize("variable", ["ALL_PROXY", "https_proxy", "HTTP_PROXY"])
@pytest.mark.parametrize("direct", [True, False])
def test_a_socks_proxy_without_its_package(variable, direct, monkeypatch):
    """A host that NO_PROXY names is asked directly; for another one the package is named."""
    monkeypatch.setenv(variable, "socks5://alice:hunter2@127.0.0.1:1080")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1" if direct else "elsewhere.example")
    with Server(lambda body: "Well.") as server:
        done = subprocess.run([sys.executable, "-c", SOCKS, server.url], capture_output=True, text=True)
    if direct:
        assert (done.returncode, done.stdout) == (0, "Well.\n"), done.stderr
    else:
        assert done.returncode == 2 and "pip install socksio, or unset" in done.stderr
        assert done.stderr.count("\n") == 1 and "hunter2" not in done.stderr


@pytest.mark.parametrize("proxy", ["http://h:port", "what://h:1", "http://[::1"])
def test_a_proxy_that_is_none_is_said(proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UserError, match="the client cannot be made .*proxies in the environment"):
        endpoint("http://127.0.0.1:9/v1")


def test_a_host_without_a_name_and_a_server_without_tls_are_said_at_once():
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be asked"):
        endpoint("http://no-such-host.invalid/v1", retries=6, first_pause=9.0).ask(QUESTION)
    with Server(lambda body: "x") as server, pytest.raises(UserError, match="cannot be asked"):
        endpoint(server.url.replace("http:", "https:"), retries=6, first_pause=9.0).ask(QUESTION)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    "cause", [socket.gaierror(socket.EAI_NONAME, "?"), ssl.SSLCertVerificationError("no")]
)
def test_a_lasting_fault_of_the_connection_passes_once_the_server_has_replied(cause):
    client = ChatClient("http://127.0.0.1:9/v1", "none", 1.0, Service("it"))
    error = ConnectionError("broken")
    error.__cause__ = cause
    assert isinstance(client._connection_error(error), Rejected)
    client.replied = True
    assert isinstance(client._connection_error(error), Busy)
    assert list(_causes(error)) == [error, cause]


@pytest.mark.parametrize(
    ("status", "code"), [(400, "model_not_found"), (405, None), (403, None), (400, "invalid_api_key")]
)
def test_statuses_that_no_repeat_helps(status, code):
    with Server(lambda body: "x", always=(status, code)) as server:
        with pytest.raises(UserError, match=f"HTTP {status}"):
            endpoint(server.url).ask(QUESTION)
        assert sum(server.received.values()) == 1


# Replies


TEXT = {"type": "text", "text": "Well."}
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (choice_of(None, "length"), ""),
        (choice_of(None), ""),
        (choice_of(None, "content_filter"), ""),
        (choice_of(None, "tool_calls", tool_calls=[]), ""),
        (choice_of("", "length"), ""),
        (choice_of([], "length"), ""),
        (choice_of(None, "length", reasoning_content="I must"), "<think>\nI must"),
        (choice_of("", reasoning="I must"), "<think>\nI must"),
        (choice_of("Well.", reasoning_content="I must"), "Well."),
        (choice_of("\n\nWell.", reasoning="I must"), "\n\nWell."),
        (choice_of(None, refusal="I can't help."), "I can't help."),
        (choice_of([TEXT]), "Well."),
        (choice_of(TEXT), "Well."),
        (choice_of(["We", "ll."]), "Well."),
        (choice_of([TEXT, {"type": "output_text", "text": " So."}]), "Well. So."),
        (choice_of([THINKING, TEXT]), "Well."),
        (
            choice_of([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}, TEXT]),
            "Well.",
        ),
        (choice_of([THINKING], "length"), "<think>\nHm."),
        (choice_of([{"type": "refusal", "refusal": "No."}]), "No."),
        (choice_of([TEXT, {"type": "image_url", "image_url": {"url": "x"}}]), "Well."),
        (choice_of("Sure! \ud83d"), "Sure! \ufffd"),
        (choice_of("\ude00\ud83d Sure"), "\ufffd\ufffd Sure"),
        (choice_of([{"type": "text", "text": "\udfff"}]), "\ufffd"),
        (choice_of(None, refusal="No \ud800"), "No \ufffd"),
        (choice_of("\U0001f600\ufeff\u2028\x00"), "\U0001f600\ufeff\u2028\x00"),
    ],
)
def test_every_form_of_a_reply_is_paid_for_once(choice, text):
    with Server(lambda body: choice) as server:
        assert endpoint(server.url).ask(QUESTION) == text
        assert sum(server.received.values()) == 1


@pytest.mark.parametrize(
    "choice", [choice_of(None, None), choice_of(7), choice_of([7]), choice_of({"a": 1}, None)]
)
def test_a_broken_reply_is_asked_for_again(choice):
    replies = iter([choice, choice_of("Well.")])
    with Server(lambda body: next(replies)) as server:
        assert endpoint(server.url).ask(QUESTION) in ("Well.", "")
        assert sum(server.received.values()) == (1 if choice["message"]["content"] == {"a": 1} else 2)


# One small question


def test_a_server_is_tried_once_a_day_and_again_where_it_failed(tmp_path, monkeypatch):
    asked = []

    def fails():
        asked.append("fails")
        raise UserError("no")

    for _ in range(2):
        with pytest.raises(UserError):
            ask_once_a_day(["a"], fails)
    for what in (["a"], ["a"], ["b"], ["a"]):
        ask_once_a_day(what, lambda: asked.append("answers"))
    assert asked == ["fails", "fails", "answers", "answers"]
    later = time.time() + 25 * 3600
    monkeypatch.setattr("rrs_jax.data.trial.time.time", lambda: later)
    ask_once_a_day(["a"], lambda: asked.append("later"))
    assert asked[-1] == "later"


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (choice_of(None, "length"), "cut at the server's limit of tokens"),
        (choice_of("<think>\nIs two", "length"), "cut at the server's limit of tokens"),
        (choice_of(""), "the answer is empty"),
        (choice_of("<think>\nIs two"), "the answer is empty"),
    ],
)
def test_a_writer_that_cannot_answer_is_said_before_it_is_paid_for_more(choice, sentence):
    with Server(lambda body: choice) as server:
        with pytest.raises(UserError, match=f"{sentence}.*nothing was begun"):
            OpenAIWriter("m", server.url, first_wait=0.01).try_out()
        assert sum(server.received.values()) == 2


def test_a_writer_that_answers_is_tried_once(monkeypatch):
    with Server(lambda body: "<think>\nhm\n</think>\n\nYes.") as server:
        for _ in range(2):
            OpenAIWriter("m", server.url).try_out()
        assert sum(server.received.values()) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n\n", "\r"])
def test_a_key_that_was_read_with_its_line_end_is_used_and_never_shown(end, monkeypatch):
    with Server(lambda body: "Well.") as server:
        client = ChatClient(server.url, f"sk-NOT-A-REAL-KEY{end}", 5.0, Service("the judge", tries=1))
        assert client.complete("judge", [{"role": "user", "content": "Why?"}]).text == "Well."
        monkeypatch.setenv("SOME_KEY", f"{end}sk-ANOTHER{end}")
        assert server.keys == {"Bearer sk-NOT-A-REAL-KEY"} and read_key("SOME_KEY") == "sk-ANOTHER"
    assert "NOT-A-REAL" not in scrub(f"Illegal header value b'Bearer sk-NOT-A-REAL-KEY{end!r}'")
