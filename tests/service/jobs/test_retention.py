import datetime as dt
import os
import threading
from pathlib import Path
from typing import cast

import pytest

from service.jobs import retention
from service.jobs.retention import Policy, Sweeper, sweep
from service.jobs.segmentation.queue import SegmentationJobs
from service.storage.local import StateDirectory

NOW = dt.datetime(2026, 6, 30, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


class Jobs:
    """Records what it is asked to erase; a job uses one of the scans."""

    def __init__(self) -> None:
        """Start with nothing erased."""
        self.before: list[dt.datetime] = []

    def erase_finished(self, before: dt.datetime) -> int:
        """Record the time and return 2."""
        self.before.append(before)
        return 2

    def uses(self, owner: str, scan: str) -> bool:
        """Return whether this is the used scan."""
        return (owner, scan) == ("local", "used")


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """Return a state directory."""
    return StateDirectory.open(tmp_path)


def make(path: Path, days_old: float) -> Path:
    """Write a file that was last changed this many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    timestamp = (NOW - days_old * DAY).timestamp()
    os.utime(path, (timestamp, timestamp))
    return path


def test_jobs_and_idle_scans_are_erased_after_their_days(state: StateDirectory) -> None:
    """Of three scans, only the old one without a job is erased; jobs are erased by the same date."""
    old, used, fresh = (make(state.scan("local", name), days) for name, days in (("old", 8), ("used", 8), ("fresh", 6)))
    jobs = Jobs()

    removed = sweep(cast("SegmentationJobs", jobs), state, Policy(7 * DAY, None), NOW)

    assert jobs.before == [NOW - 7 * DAY]
    assert removed == 3
    assert [path.exists() for path in (old, used, fresh)] == [False, True, True]


def test_f8_a_default_gives_notice(state: StateDirectory) -> None:
    """Until the notice has passed, nothing is erased, however old; afterwards it is."""
    scan, jobs = make(state.scan("local", "old"), 999), Jobs()
    policy = Policy(30 * DAY, None, state.first_swept(NOW) + 30 * DAY)

    assert sweep(cast("SegmentationJobs", jobs), state, policy, NOW + 29 * DAY) == 0
    assert scan.exists()
    assert sweep(cast("SegmentationJobs", jobs), state, policy, NOW + 30 * DAY) == 3
    assert not scan.exists()
    assert state.first_swept(NOW + 99 * DAY) == NOW


def test_logits_go_before_their_job(state: StateDirectory) -> None:
    """Logits older than their policy are erased; mask and newer logits stay."""
    old, young = (make(state.results / job / "logits.npy.gz", days) for job, days in (("a", 3), ("b", 1)))
    mask = make(state.results / "a" / "mask.nii.gz", 3)

    assert sweep(cast("SegmentationJobs", Jobs()), state, Policy(None, 2 * DAY), NOW) == 1

    assert [path.exists() for path in (old, young, mask)] == [False, True, True]


def test_without_a_policy_nothing_is_erased(state: StateDirectory) -> None:
    """Without a policy, everything is kept until it is deleted."""
    scan, logits = make(state.scan("local", "old"), 999), make(state.results / "a" / "logits.npy.gz", 999)
    jobs = Jobs()

    assert sweep(cast("SegmentationJobs", jobs), state, Policy(None, None), NOW) == 0

    assert scan.exists()
    assert logits.exists()
    assert jobs.before == []


def test_the_sweeper_goes_on_after_an_error(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk error does not end the sweeper; stop does, at once."""
    swept = threading.Semaphore(0)

    def failing(*_: object) -> int:
        swept.release()
        raise OSError

    monkeypatch.setattr(retention, "sweep", failing)
    monkeypatch.setattr(retention, "EVERY_S", 0.01)
    sweeper = Sweeper(cast("SegmentationJobs", Jobs()), state, Policy(None, None))
    sweeper.start()
    assert all(swept.acquire(timeout=5) for _ in range(3))

    sweeper.stop()

    assert not sweeper._thread.is_alive()
