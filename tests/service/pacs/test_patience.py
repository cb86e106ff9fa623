import pytest

from service.errors import (
    JobCancelled,
    ObjectNotKept,
    PacsBadResponse,
    PacsBusy,
    PacsError,
    PacsRefused,
    PacsUnreachable,
)
from service.pacs.breaker import FAILURES, PAUSE_S, Breaker
from service.pacs.patience import ATTEMPTS, FIRST_PAUSE_S, LONGEST_PAUSE_S, persist


class Scene:
    """Work with listed outcomes and a clock that advances by sleeping."""

    def __init__(self, *outcomes: PacsError | str) -> None:
        self.outcomes = list(outcomes)
        self.slept: list[float] = []
        self.told: list[str] = []
        self.now = 0.0
        self.breaker = Breaker(lambda: self.now)

    def work(self) -> str:
        """Return or raise the next outcome."""
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, PacsError):
            raise outcome
        return outcome

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self.now += seconds

    def run(self) -> str:
        """Retry the work."""
        return persist(self.work, self.breaker, self.sleep, lambda error: self.told.append(error.code))


def test_a_success_is_returned_without_a_pause() -> None:
    """There is no delay if nothing fails."""
    scene = Scene("done")
    assert (scene.run(), scene.slept, scene.told) == ("done", [], [])


@pytest.mark.parametrize("error", [PacsBusy("b"), PacsBadResponse("r")])
def test_bad_answers_are_retried_a_few_times(error: PacsError) -> None:
    """After the maximum number of attempts the last error is raised."""
    scene = Scene(*[error] * ATTEMPTS, "never")
    with pytest.raises(type(error)):
        scene.run()
    assert len(scene.told) == ATTEMPTS
    assert scene.outcomes == ["never"]


def test_an_unreachable_pacs_is_waited_for() -> None:
    """A job survives a weekend without PACS."""
    scene = Scene(*[PacsUnreachable("gone")] * 500, "done")
    assert scene.run() == "done"
    assert scene.now > 500 * PAUSE_S / 2
    assert max(scene.slept) <= LONGEST_PAUSE_S


@pytest.mark.parametrize("error", [PacsRefused("no"), ObjectNotKept("other")])
def test_a_refusal_is_final(error: PacsError) -> None:
    """It is not repeated, and it closes the circuit, because a PACS that refuses works."""
    scene = Scene(PacsBusy("b"), error)
    with pytest.raises(type(error)):
        scene.run()
    assert scene.breaker.state == "closed"


def test_pauses_grow_and_differ() -> None:
    """Each pause is random between half of a limit and the limit, which doubles."""
    scene = Scene(*[PacsBusy("b")] * (FAILURES - 1), "done")
    scene.run()
    for number, pause in enumerate(scene.slept):
        assert FIRST_PAUSE_S * 2**number / 2 <= pause <= FIRST_PAUSE_S * 2**number


def test_an_open_circuit_is_respected() -> None:
    """A job waits before its first attempt if others found the PACS dead."""
    scene = Scene("done")
    for _ in range(FAILURES):
        scene.breaker.failed()
    assert scene.run() == "done"
    assert scene.slept == [PAUSE_S]


def test_a_cancellation_ends_the_wait() -> None:
    """Whatever sleeping raises ends the retries."""
    scene = Scene(PacsBusy("b"), "never")

    def cancelled(_: float) -> None:
        msg = "cancelled"
        raise JobCancelled(msg)

    with pytest.raises(JobCancelled):
        persist(scene.work, scene.breaker, cancelled, lambda _: None)
