import httpx
import pytest
from tenacity import Retrying

from service.client.retry import Retry
from service.errors import CalibrantError, ServerProblem, ServerUnreachable


def _attempts(error: CalibrantError, *, met: bool = True, patience_s: float = 100) -> int:
    """Return how often a call that always fails this way is tried, at most five times."""
    retry = Retry(patience_s)
    retry.met = met
    attempts = 0

    def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise error if attempts < 5 else ValueError

    with pytest.raises((type(error), ValueError)):
        Retrying(**retry.policy | {"sleep": lambda _: None})(fail)
    return attempts


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    """Requests are repeated for statuses that are likely to pass."""
    assert _attempts(ServerProblem("x", status)) == 5


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500, 507])
def test_a_refusal_stands(status: int) -> None:
    """Requests are not repeated for errors that would occur again."""
    assert _attempts(ServerProblem("x", status)) == 1


def test_a_model_that_cannot_be_served_stays_so() -> None:
    """The 503 of a broken bundle is not repeated."""
    assert _attempts(ServerProblem("x", 503, problem_type="/problems/bundle-integrity")) == 1


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    """A server that never answered is not waited for: the address may be wrong."""
    assert _attempts(ServerUnreachable("x"), met=False) == 1


def test_a_server_that_has_answered_is_waited_for() -> None:
    """A server that has answered before may be restarting."""
    retry = Retry(100)
    retry.met = True
    tries = iter([httpx.ConnectError("a"), httpx.ReadError("b"), None])
    for attempt in Retrying(**retry.policy | {"sleep": lambda _: None}):
        with attempt:
            error = next(tries)
            if error is not None:
                raise ServerUnreachable(str(error)) from error

    assert list(tries) == []


def test_a_pause_longer_than_the_patience_is_not_begun() -> None:
    """If the server asks for a pause of an hour, its error is raised at once."""
    assert _attempts(ServerProblem("x", 429, retry_after_s=3600)) == 1


@pytest.mark.parametrize("problem", ["too-many-jobs", "too-many-uploads", "service-busy"])
def test_f2_waiting_for_room_is_waiting_in_a_queue(problem: str) -> None:
    """A server that is full and says for how long is asked again beyond the usual patience, up to an hour; never without any."""
    full = ServerProblem("x", 429, problem_type=f"/problems/{problem}", retry_after_s=300)

    assert _attempts(full) == 5
    assert _attempts(full, patience_s=0) == 1
    assert _attempts(ServerProblem("x", 429, problem_type=f"/problems/{problem}", retry_after_s=3601)) == 1


def test_without_patience_nothing_is_repeated() -> None:
    """With zero seconds of patience there is one attempt."""
    assert _attempts(ServerProblem("x", 503), patience_s=0) == 1
