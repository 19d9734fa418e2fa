"""A part of each of the faults of tests/faults; `python -m faults` does all of them."""

import random
import signal
import struct

import pytest

from faults.fuzz import fuzz, shares
from faults.interruptions import interrupt, moments
from faults.mutations import mutated
from faults.readers import MISBEHAVING, READERS
from faults.runs import STAGES, SmallRun

INPUTS = 400
# All of them bring in what takes half a minute to load, and are read by other tests in this process.
SLOW = {"weights", "processor", "config.json", "adapter", "gguf", "ctranslate2"}


def test_mutated_inputs_end_in_a_sentence():
    outcomes = fuzz(INPUTS, [name for name in READERS if name not in SLOW], seed=1)
    assert {name: one.faults for name, one in outcomes.items() if one.faults} == {}
    assert sum(one.read + one.told for one in outcomes.values()) >= INPUTS * 0.9
    assert all(one.read + one.told for one in outcomes.values())


def test_a_reader_that_fails_hangs_or_dies_is_noticed(monkeypatch):
    monkeypatch.setattr("faults.fuzz.SECONDS", 3)
    outcomes = fuzz(4, list(MISBEHAVING))
    assert {name: list(one.faults) for name, one in outcomes.items()} == {
        "fails": ["KeyError in readers.py:<lambda>"],
        "hangs": ["hangs"],
        "crashes": ["crashes (SIGSEGV)"],
        "fills the memory": ["MemoryError in readers.py:<lambda>"],
    }


def test_mutations_are_drawn_anew_from_their_numbers():
    content = b'{"id": "a", "number": 12, "list": [1, null]}' + struct.pack("<Q", 7)
    drawn = [[mutated(content, random.Random(number)) for number in range(300)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 250 and content not in drawn[0][:5]


def test_moments_are_spread_over_all_stages():
    drawn = moments(40)
    counts = [sum(stage == name for stage, *_ in drawn) for name in STAGES]
    assert sum(counts) == 40 and max(counts) - min(counts) <= 1
    assert sum(shares(100_000, list(READERS)).values()) == pytest.approx(100_000, rel=0.01)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    made = SmallRun(tmp_path_factory.mktemp("small"))
    made.prepare(("train",))
    return made


@pytest.mark.parametrize(
    ("kind", "share", "by"), [(signal.SIGKILL, 0.6, "marks"), (signal.SIGTERM, 0.95, "time")]
)
def test_a_stage_that_is_ended_goes_on_to_the_same_files(small, kind, share, by):
    row = interrupt(small, kind, "train", share, by)
    assert row["interrupted"] and not row["bad"], row
    assert row["status"] == (-kind if kind == signal.SIGKILL else 1)
