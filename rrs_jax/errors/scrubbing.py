"""Texts without API keys, without what an address may hold of a secret, and as a terminal may get them."""

import re

MARK = "[key]"  # stands in place of a key
SHORT = 8  # characters; a shorter key is taken out only where it stands as a word of its own
SHORTEST = 4  # characters; shorter ones are part of ordinary words
_USER = re.compile(r"(?<=://)[^\s'\"<>]*@")
# Punctuation behind an address belongs to the sentence.
_QUERY = re.compile(
    r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s'\"<>?#]*)[?#][^\s'\"<>]*?(?=[:.,;!)\]]*(?:[\s'\"<>]|$))"
)
# All but tab and line feed of C0 and C1; marks of direction and of invisible order.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_keys: set[str] = set()  # that this process has used


def keep_secret(key: str) -> None:
    """Has `scrub` take this key out of every text from now on."""
    if len(key) >= SHORTEST:
        _keys.add(key)


def scrub(text: str) -> str:
    """Returns the text without keys, and its addresses without user, password, query and fragment.

    An address that holds none of these comes back as it is.
    """
    for key in sorted(_keys, key=len, reverse=True):  # a key may begin with another one
        pattern = re.escape(key)
        text = re.sub(pattern if len(key) >= SHORT else rf"(?<!\w){pattern}(?!\w)", MARK, text)
    return _QUERY.sub(r"\1", _USER.sub("", text))


def told(text: str) -> str:
    """Returns the text as a terminal may get it: without secrets, its control characters as text."""
    return visible(scrub(text))


def visible(text: str) -> str:
    """Returns the text with escapes in place of characters that a terminal obeys, or that turn its reading.

    A manifest's row could otherwise clear the screen, or show another name than it has.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown_address(written: str) -> str:
    """Returns an address as messages show it, also one that is written wrongly."""
    scheme, mark, rest = written.rpartition("://")
    return scrub(scheme + mark + re.split(r"[?#]", rest.rpartition("@")[2])[0])
