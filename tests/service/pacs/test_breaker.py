from service.pacs.breaker import FAILURES, PAUSE_S, Breaker


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_failures_in_a_row_open_the_circuit_for_a_while() -> None:
    """Fewer failures do not, and a success restarts the count."""
    breaker = Breaker(clock := Clock())
    for _ in range(FAILURES - 1):
        breaker.failed()
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed()
    assert (breaker.state, breaker.seconds_to_wait()) == ("closed", 0)
    breaker.failed()
    assert (breaker.state, breaker.seconds_to_wait()) == ("open", PAUSE_S)
    clock.now += 10
    assert breaker.seconds_to_wait() == PAUSE_S - 10


def test_after_the_pause_one_may_try() -> None:
    """The others wait; if the first one never reports, another may try after a further pause."""
    breaker = Breaker(clock := Clock())
    for _ in range(FAILURES):
        breaker.failed()
    clock.now += PAUSE_S
    assert breaker.seconds_to_wait() == 0
    assert breaker.seconds_to_wait() == PAUSE_S
    breaker.failed()
    assert breaker.seconds_to_wait() == PAUSE_S
    clock.now += PAUSE_S
    assert breaker.seconds_to_wait() == 0
    breaker.succeeded()
    assert (breaker.state, breaker.seconds_to_wait()) == ("closed", 0)
