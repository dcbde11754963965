"""The circuit breaker's states."""

from streams.breaker import CAP_S, FAILURES, FIRST_REST_S, Breaker


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.allows(0)
        breaker.failed(0, breaker.began())
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(0, False)
        breaker.worked()
    assert breaker.closed
    assert not opened().closed


def test_an_open_breaker_allows_one_probe_after_its_rest() -> None:
    breaker = opened()
    assert not breaker.allows(FIRST_REST_S * 0.99)
    assert breaker.allows(FIRST_REST_S)
    assert breaker.began(), "a probe"
    assert not breaker.allows(FIRST_REST_S), "one probe at a time"
    breaker.worked()
    assert breaker.closed
    assert not breaker.began(), "closed again: no probe"


def test_failed_probes_rest_longer_up_to_the_cap() -> None:
    breaker, now, rests = opened(), 0.0, []
    for _ in range(8):
        start = now
        while not breaker.allows(now):
            now += 0.05
        rests.append(round(now - start, 1))
        breaker.failed(now, breaker.began())
    assert rests == sorted(rests)
    assert rests[0] == FIRST_REST_S
    assert rests[-1] == CAP_S
    assert breaker.open_since == 0, "since it opened, whatever the probes"


def test_requests_that_were_under_way_when_it_opened_are_no_probes() -> None:
    breaker = opened()
    for _ in range(30):
        breaker.failed(0.1, False)
    assert breaker.allows(FIRST_REST_S), "the rest is the first one"
    breaker.began()
    breaker.failed(FIRST_REST_S, False)
    breaker.gave_up(False)
    assert not breaker.allows(FIRST_REST_S), "they end no probe either"


def test_a_cancelled_probe_leaves_room_for_another() -> None:
    breaker = opened()
    breaker.gave_up(breaker.began())
    assert breaker.allows(FIRST_REST_S)
