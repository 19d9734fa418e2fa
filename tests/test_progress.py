"""Progress lines: their words, and an estimate that waits until it has seen enough."""

import pytest

from rrs_jax import progress
from rrs_jax.progress import Pace, Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock in a list that a test moves by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_compilation_is_no_part_of_the_pace():
    """64 answers a batch: the first after 40 s of compilation, the others every 5 s."""
    pace = Pace()
    for batch in range(4):
        for answer in range(64):
            pace.add(1, 40 + 5 * batch + answer / 1e6)
        assert (pace.rate() is None) == (batch == 0)
    assert pace.rate() == pytest.approx(64 / 5, rel=0.01)


def test_the_first_answer_of_a_second_batch_is_no_pace():
    """It comes 13 s behind the first batch, and 515 more with it."""
    pace = Pace()
    for answer in range(512):
        pace.add(1, 40 + answer / 1e6)
    pace.add(1, 53.0)
    assert pace.rate() is None
    for answer in range(515):
        pace.add(1, 53.0 + answer / 1e6)
    assert pace.rate() == pytest.approx(516 / 13, rel=0.01)


def test_few_seconds_give_no_estimate():
    pace = Pace()
    for second in range(4):
        pace.add(1, 10.0 + second)
        assert pace.rate() is None
    pace.add(1, 14.0)
    assert pace.rate() == 1.0


def test_lines(clock, capsys):
    """A first answer after 42 s says nothing about the rest; the line after it does."""
    with Progress(192, "vanilla answers the questions", "answers") as answers:
        clock[0] += 42
        answers.update(64, mode="text_only")
        clock[0] += 20
        answers.update(64, mode="audio_text")
        clock[0] += 20
        answers.update(64)
    assert capsys.readouterr().err.splitlines() == [
        "vanilla answers the questions: 64 of 192 answers, mode text_only",
        "vanilla answers the questions: 128 of 192 answers, 3.2 a second, about 20 s left, mode audio_text",
        "vanilla answers the questions: 192 answers in 1 min 22 s",
    ]


def test_what_is_stopped_says_so(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Progress(8, "training", "steps") as steps:
        steps.update(3)
        clock[0] += 3
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "training: stopped at 3 of 8 steps in 3 s\n"


def test_nothing_done_says_nothing(capsys):
    with Progress(0, "drawing figure 2", "runs"):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_has_the_same_estimates(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(100, "training", "steps") as steps:
        clock[0] += 30
        steps.update(1)
        clock[0] += 10
        steps.update(10, loss=3.5)
        steps.bar.refresh()
    text = capsys.readouterr().err
    assert "11 of 100 steps, 1 a second, about 1 min 29 s left, loss 3.5" in text


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "less than 1 s"), (1, "1 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
