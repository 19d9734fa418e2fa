"""Keys and passwords in messages, and addresses that are none."""

import io
import itertools
import logging
import sys
import threading

import pytest

from rrs_jax.config.kinds import address, address_problem, either
from rrs_jax.errors import UserError, exit_status, keep_secret, scrub, scrubbing, shown_address
from rrs_jax.files import content_hash, replace_surrogates
from rrs_jax.progress import say

SECRETS = ("alice", "hunter2", "p%40ss", "sig=abc", "token")
# What may stand before and behind the host of an address.
USERS = ("", "alice@", "alice:hunter2@", "alice:p%40ss@", "alice:hun@ter2@")
QUERIES = ("", "?sig=abc", "?a=1&token=hunter2", "#token")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.setattr(scrubbing, "_keys", set())


@pytest.mark.parametrize("around", ["{}", "{}: refuses", "'{}'", "(see {}), please", "at {}\nor"])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_an_address_is_shown_by_its_host_and_path_alone(scheme, around):
    for user, query in itertools.product(USERS, QUERIES):
        written = around.format(f"{scheme}://{user}host:8000/v1{query}")
        assert scrub(written) == around.format(f"{scheme}://host:8000/v1")
    assert shown_address(f"{scheme}://alice:hunter2@host/v1?token=1") == f"{scheme}://host/v1"


@pytest.mark.parametrize(
    "written", ["alice:hunter2@host:1/v1", "http:/alice:hunter2@host", "://alice@h?sig=abc"]
)
def test_an_address_that_is_written_wrongly_is_shown_without_its_secrets(written):
    shown = shown_address(written)
    assert not any(secret in shown for secret in SECRETS) and "h" in shown
    assert shown in address().show(written) and "hunter2" not in address().show(written)


@pytest.mark.parametrize(
    "message",
    ["{}", "Illegal header value b'Bearer {}\\n'", "Incorrect API key provided: {}.", '{{"key": "{}"}}'],
)
@pytest.mark.parametrize("key", ["sk-NOT-A-REAL-KEY", "sk-a", "EMPTY", "a+b(c)[d]\\e", "token-abc123/=="])
def test_a_key_is_taken_out_wherever_it_stands(key, message):
    keep_secret(key)
    assert key not in scrub(message.format(key))
    assert scrub("EMPTYING and sk-apple are words") == "EMPTYING and sk-apple are words"


def test_the_longer_of_two_keys_goes_first():
    keep_secret("sk-project")
    keep_secret("sk-project-of-alice")
    assert scrub("sk-project-of-alice, sk-project") == "[key], [key]"


@pytest.mark.parametrize("raised", [UserError, RuntimeError, KeyError])
def test_no_message_of_a_command_holds_a_key(raised, capsys):
    keep_secret("sk-NOT-A-REAL-KEY")
    with exit_status() as status:
        say("asking http://alice:hunter2@host/v1?sig=abc with sk-NOT-A-REAL-KEY")
        raise raised("http://alice:hunter2@host/v1: refuses sk-NOT-A-REAL-KEY")
    told = capsys.readouterr().err
    assert status.code == (2 if raised is UserError else 1) and told.count("http://host/v1") >= 2
    assert not any(secret in told for secret in (*SECRETS, "sk-NOT"))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("127.0.0.1:8145/v1", "does not begin with http"),
        ("localhost:8000/v1", "does not begin with http"),
        ("ftp://host/v1", "does not begin with http"),
        ("http:/host/v1", "does not begin with http"),
        ("http:///v1", "names no host"),
        ("https://", "names no host"),
        ("http://host:port/v1", "a port that is no number"),
        ("http://host:99999/v1", "a port that is no number"),
        ("http://[::1/v1", "names no host"),
        ("http://my host/v1", "white space"),
    ],
)
def test_what_is_no_address_is_said(written, problem):
    assert problem in address_problem(written)
    assert not either(address(), None).accepts(written)


@pytest.mark.parametrize(
    "written", ["http://127.0.0.1:8000/v1", "HTTPS://host", "http://[::1]:8000/v1", "https://u:p@h/v1?a=b\n"]
)
def test_addresses(written):
    assert address_problem(written) is None and either(address(), None).accepts(written)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_gets_a_replacement_for_what_it_lacks(encoding, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with exit_status() as status:
        print("ΔV of 模型 \ud800.")
        raise UserError("ΔV of 模型 \ud800.")
    assert status.code == 2
    for stream in streams:
        stream.flush()
        written = stream.buffer.getvalue().decode(encoding)
        expected = "".join(c if c.encode(encoding, "ignore") else "?" for c in "ΔV of 模型 \ud800.")
        assert written == expected + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sure! \ud83d", "Sure! \ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00 and \ud83d", "\U0001f600 and \ufffd"),
        ("\ufeffa\U0001f600\ud800b", "\ufeffa\U0001f600\ufffdb"),
        ("plain, mañana, 模型", "plain, mañana, 模型"),
    ],
)
def test_lone_surrogates_are_replaced_and_pairs_joined(text, expected):
    assert replace_surrogates(text) == expected
    assert len(content_hash(text)) == 16


def test_logs_and_threads_tell_no_secret(capsys, caplog):
    """Whatever libraries log, and however they fail in threads of their own."""
    keep_secret("sk-NOT-A-REAL-KEY")
    address = "http://alice:hunter2@host/v1?sig=abc"
    before = logging.getLogRecordFactory(), threading.excepthook
    with exit_status(), caplog.at_level(logging.INFO):
        logging.getLogger("httpx").info('HTTP Request: %s "%s"', address, "sk-NOT-A-REAL-KEY")
        logging.getLogger("x").warning("%d of " + address, 1)
        logging.getLogger("x").info({"url": address})
        thread = threading.Thread(target=int, args=(f"{address} with sk-NOT-A-REAL-KEY",))
        thread.start()
        thread.join()
    assert (logging.getLogRecordFactory(), threading.excepthook) == before
    assert caplog.messages[0] == 'HTTP Request: http://host/v1 "[key]"'
    assert caplog.messages[1] == "1 of http://host/v1"
    said = capsys.readouterr().err + caplog.text
    assert "Traceback" in said and not any(secret in said for secret in (*SECRETS, "NOT-A-REAL"))
