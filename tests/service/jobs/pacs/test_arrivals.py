import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from service.bundle.registry import Registry
from service.errors import PacsUnreachable, SeriesNotFound
from service.jobs.pacs import arrivals as module
from service.jobs.pacs.arrivals import Arrivals
from service.jobs.pacs.series import PacsRequest
from service.pacs.changes import Changes
from service.pacs.config import PacsFile
from service.pacs.selection import Series
from service.pacs.spool import Spool
from service.storage.local import StateDirectory

CT = Series("1.2.4", "1.2.5", "CT", "chest", instances=40)
FILE = {
    "pacs": {"clinic": {"url": "http://127.0.0.1:9/dicom-web", "orthanc": "http://127.0.0.1:9", "poll_s": 0.01}},
    "rule": [
        {"pacs": "clinic", "select": {"modality": "CT"}, "owner": "lab", "objects": ["seg"]},
        {"pacs": "clinic", "select": {"min_instances": 99}},
        {"pacs": "received", "destination": "clinic"},
    ],
    "receiver": {"allowed": ["SCANNER"], "idle_s": 0.2, "patience_s": 2},
}


class Jobs:
    """Records requests; a test puts series into its source."""

    def __init__(self) -> None:
        self.series: list[Series] = [CT]
        self.requests: list[PacsRequest] = []
        self.error: Exception | None = None

    def source(self, _: str) -> Any:  # noqa: ANN401 - a source of series
        """Return a source."""
        if self.error is not None:
            raise self.error
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def find_series(self, **_: object) -> list[Series]:
        """Return everything."""
        return self.series

    def submit(self, request: PacsRequest) -> SimpleNamespace:
        """Record the request."""
        self.requests.append(request)
        return SimpleNamespace(id=f"job {len(self.requests)}")


@pytest.fixture
def jobs() -> Jobs:
    """Return the recorder of requests."""
    return Jobs()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """Return a state directory."""
    return StateDirectory.open(tmp_path / "state")


@pytest.fixture
def arrivals(jobs: Jobs, state: StateDirectory, registry: Registry) -> Iterator[Arrivals]:
    """Yield the arrivals under test."""
    arriving = Arrivals(jobs, PacsFile.model_validate(FILE), registry, state)  # type: ignore[arg-type]
    yield arriving
    arriving.stop()


def wait_until(true: Any) -> None:  # noqa: ANN401 - a condition
    """Wait for a condition."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rules_decide_what_is_segmented(arrivals: Arrivals, jobs: Jobs) -> None:
    """Every fitting rule makes a job with its owner and objects, delivered back to the source."""
    assert arrivals.consider("clinic", "1.2.5") == ["job 1"]
    (request,) = jobs.requests
    assert (request.owner, request.objects, request.destination) == ("lab", ("seg",), "clinic")
    assert (request.study, request.series) == ("1.2.4", "1.2.5")


@pytest.mark.parametrize(
    "series",
    [
        Series("1.2.4", "1.2.5", "SEG", instances=100),
        Series("1.2.4", "1.2.5", "MR", instances=100, manufacturer="Calibrant"),
        Series("1.2.4", "1.2.77", "CT"),
        Series("1.2.4", "1.2.5", "MR", instances=40),
    ],
)
def test_nothing_is_made_of_results_or_of_what_no_rule_names(arrivals: Arrivals, jobs: Jobs, series: Series) -> None:
    """Results are skipped before the rules are applied, and only the series of the hint is considered."""
    jobs.series = [series]
    assert arrivals.consider("clinic", "1.2.5") == []
    assert jobs.requests == []


def test_changes_are_followed_from_where_they_were(
    arrivals: Arrivals, jobs: Jobs, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Series from before the first start are skipped, an unreachable PACS does not move the position, and no change is missed."""
    asked: list[int] = []

    class Orthanc:
        def __init__(self, _: object) -> None:
            pass

        def end(self) -> int:
            return 100

        def close(self) -> None:
            pass

        def since(self, position: int) -> Changes:
            asked.append(position)
            return Changes(["1.2.5"], 101, done=True) if position == 100 else Changes([], position, done=True)

    monkeypatch.setattr(module, "Orthanc", Orthanc)
    jobs.error = PacsUnreachable("gone")
    arrivals.start()
    wait_until(lambda: asked.count(100) > 1)
    assert (state.changes / "clinic").read_text() == "100"
    jobs.error = None
    wait_until(lambda: 101 in asked)
    assert len(jobs.requests) == 1
    assert (state.changes / "clinic").read_text() == "101"


def test_what_was_received_is_taken_once_it_is_whole(
    arrivals: Arrivals, jobs: Jobs, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A received series makes a job once it is complete, and another one when images arrive late."""
    whole: list[bool] = [False]
    monkeypatch.setattr(Spool, "is_whole", lambda *_: whole[0])
    monkeypatch.setattr(module, "_SPOOL_S", 0.02)
    counts = [5]
    now = Spool(state.received)
    assert now.arrivals(time.time()) == []
    monkeypatch.setattr(
        Spool, "arrivals", lambda *_: [SimpleNamespace(study="1.2.4", series="1.2.5", count=counts[0], idle_s=1)]
    )
    monkeypatch.setattr(Arrivals, "_follow_changes", lambda *_: None)
    arrivals.start()
    time.sleep(0.2)
    assert jobs.requests == []
    whole[0] = True
    wait_until(lambda: len(jobs.requests) == 1)
    time.sleep(0.2)
    assert len(jobs.requests) == 1
    counts[0] = 6
    wait_until(lambda: len(jobs.requests) == 2)
    assert {request.destination for request in jobs.requests} == {"clinic"}


def test_a_hint_is_kept_until_it_could_be_looked_up(
    arrivals: Arrivals, jobs: Jobs, state: StateDirectory, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint is stored on the disk until it is looked up; repeated hints are one, and invalid ones are dropped."""
    file = PacsFile.model_validate(FILE | {"webhook": {"pacs": "clinic", "secret": {"env": "SECRET"}}})
    hints = state.changes / "clinic.hints"
    for _ in range(2):
        arrivals.note("clinic", "1.2.5")
    assert [hint.read_text() for hint in hints.iterdir()] == ["1.2.5"]
    monkeypatch.setattr(Arrivals, "_follow_changes", lambda *_: None)
    jobs.error = PacsUnreachable("gone")
    later = Arrivals(jobs, file, registry, state)  # type: ignore[arg-type]
    later.start()
    time.sleep(0.5)
    assert (jobs.requests, len(list(hints.iterdir()))) == ([], 1)
    jobs.error = None
    wait_until(lambda: not list(hints.iterdir()))
    jobs.error = SeriesNotFound("no UID")
    later.note("clinic", "..")
    wait_until(lambda: not list(hints.iterdir()))
    later.stop()
    assert len(jobs.requests) == 1


def test_a_series_that_is_at_fault_stops_nothing(
    arrivals: Arrivals, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a series does not keep the next hint from being followed."""

    def refuse(_: PacsRequest) -> None:
        msg = "gone meanwhile"
        raise SeriesNotFound(msg)

    monkeypatch.setattr(jobs, "submit", refuse)
    assert arrivals.consider("clinic", "1.2.5") == []
