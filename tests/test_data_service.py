"""The clock of a service: waits, pauses, headers of time, interruptions."""

import time

import pytest

from rrs_jax.data.service import Busy, GaveUp, Refused, Service, seconds_of


def test_waits_double_and_a_service_may_ask_for_its_own(monkeypatch):
    service = Service("it", tries=5, first_wait=1.0)
    service.longest_wait = 5.0
    waits = []
    monkeypatch.setattr(service._stop, "wait", lambda seconds: waits.append(seconds))
    answers = iter([Busy("a"), Busy("b"), Busy("c", seconds=3.0), Busy("d", seconds=99.0)])

    def call():
        raise next(answers, None) or StopIteration

    with pytest.raises(StopIteration):
        service.call(call)
    waits = [seconds for seconds in waits if seconds > 0.01]
    assert 0.7 < waits[0] < 1.3 and 1.4 < waits[1] < 2.6 and waits[2:] == pytest.approx([3.0, 5.0], abs=0.01)


def test_one_that_is_told_to_wait_makes_all_wait():
    service, called = Service("it", concurrency=2), []

    def call(i):
        called.append((i, time.monotonic()))
        if len(called) == 1:
            raise Busy("slow down", seconds=0.3, everyone=True)
        return i

    with pytest.raises(GaveUp):
        Service("it", tries=1).call(lambda: (_ for _ in ()).throw(Busy("x", everyone=True)))
    assert service.call(lambda: call(0)) == 0
    service.pause(0.3)
    assert dict(service.each(lambda i: service.call(lambda: call(i)), [1, 2])) == {1: 1, 2: 2}
    moments = [moment for _, moment in called]
    assert moments[1] - moments[0] > 0.29 and min(moments[2:]) - moments[1] > 0.29


def test_headers_of_time():
    assert [seconds_of(text) for text in ("2", "1.5", "20ms", "6m0s", "1h2m3s", "0")] == [
        2,
        1.5,
        0.02,
        360,
        3723,
        0,
    ]
    assert [seconds_of(text) for text in (None, "", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "s")] == [None] * 5


def test_an_interruption_finishes_what_is_under_way():
    service, done = Service("it", concurrency=3, first_wait=30.0), []

    def work(i):
        if i == 2:
            service.call(lambda: (_ for _ in ()).throw(Busy("wait long")))
        time.sleep(0.1)
        done.append(i)

    start = time.monotonic()
    stream = service.each(work, range(100))
    next(stream)
    stream.close()  # as an exception in the loop does
    assert time.monotonic() - start < 5 and {0, 1} <= set(done) and len(done) < 10
    assert service.call(lambda: "usable again") == "usable again"
    with pytest.raises(GaveUp, match="it gave no answer in 2 tries, at last: no"):
        Service("it", tries=2, first_wait=0.001).call(lambda: (_ for _ in ()).throw(Busy("no")))
    assert issubclass(GaveUp, Refused)
