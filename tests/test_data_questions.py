"""Questions that a voice can read, and those that it cannot."""

import pytest

from helpers.synthetic_beavertails import benign_rows
from rrs_jax.data.beavertails import group_rows
from rrs_jax.data.questions import clean, is_question, unspeakable
from rrs_jax.data.selection import make_pool


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How " + "very " * 50 + "long?", "more than 40 words"),
        ("Why not?", "fewer than 3 words"),
        ("1 2 3 4?", "no letters"),
        ("Как дела у вас?", "letters that"),
        ("What is on https://a.example/x today?", "an address"),
        ("What does <b>this</b> mean?", "signs"),
        ("Is this fine 😀 or not?", "signs"),
        ("Who has number 123456789012?", "a long"),
        ("What is " + "a" * 31 + " made of?", "a word"),
        ("What is\x07 this thing?", "control"),
    ],
)
def test_what_no_voice_can_read(text, reason):
    assert unspeakable(clean(text)).startswith(reason)
    (question,) = group_rows(benign_rows(text))
    pool = make_pool([question])
    assert not pool.benign and pool.dropped.total() == 1


def test_what_a_voice_can_read():
    for text in (
        "Does café au lait cost $3.50 or 10% more?",
        "Why is Ben & Jerry's so good?",
        "how do i cook - fast?",
    ):
        assert unspeakable(text) is None and is_question(text)
    assert not is_question("Write me a poem about cats")
