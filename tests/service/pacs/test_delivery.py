import io
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pydicom import dcmread

from service.errors import PacsBadResponse, PacsBusy, PacsError, PacsRefused, PacsUnreachable
from service.pacs.breaker import Breaker
from service.pacs.delivery import deliver
from service.pacs.ledger import OBJECTS, Ledger
from service.pacs.patience import ATTEMPTS
from service.pacs.selection import Series


class Memory(AbstractContextManager["Memory"]):
    """A PACS in memory that keeps the first object of a UID and fails on request."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.stored: list[str] = []
        self.failures: Iterator[PacsError | None] = itertools.repeat(None)
        self.loses_answers = 0

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def find_series(self, **_: object) -> list[Series]:
        """Fail: delivery does not use it."""
        raise NotImplementedError

    def find_instances(self, study: str, series: str) -> list[str]:
        """Fail: delivery does not use it."""
        raise NotImplementedError

    def fetch_series(self, study: str, series: str) -> Iterator[bytes]:
        """Fail: delivery does not use it."""
        raise NotImplementedError

    def holds(self, study: str, series: str, instance: str) -> bool:  # noqa: ARG002 - as every peer
        """Return whether it has an object."""
        return instance in self.objects

    def fetch_instance(self, study: str, series: str, instance: str) -> bytes:  # noqa: ARG002 - as every peer
        """Return an object."""
        return self.objects[instance]

    def store(self, path: Path) -> None:
        """Keep an object, unless a failure is due."""
        if failure := next(self.failures):
            raise failure
        uid = str(dcmread(path).SOPInstanceUID)
        self.stored.append(uid)
        self.objects.setdefault(uid, path.read_bytes())
        if self.loses_answers:
            self.loses_answers -= 1
            msg = "gone before it said so"
            raise PacsUnreachable(msg)


@pytest.fixture
def folder(tmp_path: Path, series_files: list[Path]) -> Path:
    """Return the folder of a job with three objects to deliver."""
    folder = tmp_path / "job"
    (folder / OBJECTS).mkdir(parents=True)
    files = [path.rename(folder / OBJECTS / path.name) for path in series_files[:3]]
    Ledger.of("lab", "clinic", files).save(folder)
    return folder


def problem_of_the_dead(folder: Path) -> str:
    """Return the type of the problem of the one object that was given up."""
    ledger = Ledger.read(folder)
    assert ledger is not None
    (entry,) = ledger.dead
    assert entry.problem is not None
    return entry.problem.type


def run(folder: Path, pacs: Memory) -> list[tuple[str, int]]:
    """Deliver, and return state and attempts of each object."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    ledger = deliver(folder, pacs, Breaker(lambda: clock[0]), sleep)
    assert ledger == Ledger.read(folder)
    return [(entry.state, entry.attempts) for entry in ledger.entries]


def test_every_object_is_stored_once(folder: Path) -> None:
    """A second delivery sends nothing."""
    pacs = Memory()
    assert run(folder, pacs) == [("stored", 1)] * 3
    assert run(folder, pacs) == [("stored", 1)] * 3
    assert len(pacs.stored) == 3


def test_a_lost_answer_does_not_duplicate_an_object(folder: Path) -> None:
    """The PACS is queried before an object is sent again."""
    pacs = Memory()
    pacs.loses_answers = 1
    assert run(folder, pacs) == [("stored", 2), ("stored", 1), ("stored", 1)]
    assert len(pacs.stored) == 3


def test_only_what_failed_is_sent_again(folder: Path) -> None:
    """A failure of one object does not affect the others."""
    pacs = Memory()
    pacs.failures = iter([None, PacsBusy("0xA700"), PacsBadResponse("html"), None, None])
    assert run(folder, pacs) == [("stored", 1), ("stored", 3), ("stored", 1)]


def test_a_refused_object_is_a_dead_letter_and_the_rest_arrives(folder: Path) -> None:
    """It has its reason and no second attempt."""
    pacs = Memory()
    pacs.failures = iter([None, PacsRefused("0xA900"), None])
    assert run(folder, pacs) == [("stored", 1), ("dead", 1), ("stored", 1)]
    assert problem_of_the_dead(folder) == "/problems/pacs-refused"


def test_an_object_is_given_up_when_the_pacs_stays_busy(folder: Path) -> None:
    """It becomes a dead letter after the maximum number of attempts."""
    pacs = Memory()
    pacs.failures = itertools.chain([PacsBusy("503")] * ATTEMPTS, itertools.repeat(None))
    assert run(folder, pacs)[0] == ("dead", ATTEMPTS)


def test_an_older_object_that_the_pacs_keeps_is_detected(folder: Path) -> None:
    """The PACS reports success but holds another object with the same UID."""
    pacs = Memory()
    older = dcmread(folder / OBJECTS / "1.dcm")
    older.PixelData = bytes(len(older.PixelData))
    file = io.BytesIO()
    older.save_as(file)
    pacs.objects[str(older.SOPInstanceUID)] = file.getvalue()
    assert run(folder, pacs) == [("stored", 1), ("dead", 1), ("stored", 1)]
    assert problem_of_the_dead(folder) == "/problems/object-not-kept"


def test_an_object_that_is_not_found_again_was_not_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the object cannot be found after a success, delivery is retried a few times and then given up."""
    monkeypatch.setattr(Memory, "holds", lambda *_: False)
    assert run(folder, Memory()) == [("dead", ATTEMPTS)] * 3
