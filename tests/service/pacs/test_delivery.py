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
    """A PACS in memory that keeps the first object of an identifier, and fails as a test tells it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.stored: list[str] = []
        self.failures: Iterator[PacsError | None] = itertools.repeat(None)
        self.loses_answers = 0

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def find_series(self, **_: object) -> list[Series]:
        """Not asked for."""
        raise NotImplementedError

    def find_instances(self, *_: str) -> list[str]:
        """Not asked for."""
        raise NotImplementedError

    def fetch_series(self, *_: str) -> Iterator[bytes]:
        """Not asked for."""
        raise NotImplementedError

    def holds(self, _: str, __: str, instance: str) -> bool:
        """Say whether it has it."""
        return instance in self.objects

    def fetch_instance(self, _: str, __: str, instance: str) -> bytes:
        """Return it."""
        return self.objects[instance]

    def store(self, path: Path) -> None:
        """Keep it, unless it is there or a failure is due."""
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


def run(folder: Path, pacs: Memory) -> list[tuple[str, int]]:
    """Deliver and return state and attempts of each object."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    ledger = deliver(folder, pacs, Breaker(lambda: clock[0]), sleep)
    assert ledger == Ledger.read(folder)
    return [(entry.state, entry.attempts) for entry in ledger.entries]


def test_every_object_is_stored_once(folder: Path) -> None:
    """And once more is nothing more."""
    pacs = Memory()
    assert run(folder, pacs) == [("stored", 1)] * 3
    assert run(folder, pacs) == [("stored", 1)] * 3
    assert len(pacs.stored) == 3


def test_an_answer_that_was_lost_is_no_second_object(folder: Path) -> None:
    """It is looked for before it is sent again."""
    pacs = Memory()
    pacs.loses_answers = 1
    assert run(folder, pacs) == [("stored", 2), ("stored", 1), ("stored", 1)]
    assert len(pacs.stored) == 3


def test_only_what_failed_is_sent_again(folder: Path) -> None:
    """A partial failure costs the others nothing."""
    pacs = Memory()
    pacs.failures = iter([None, PacsBusy("0xA700"), PacsBadResponse("html"), None, None])
    assert run(folder, pacs) == [("stored", 1), ("stored", 3), ("stored", 1)]


def test_a_refused_object_is_a_dead_letter_and_the_rest_arrives(folder: Path) -> None:
    """With the reason, and without a second attempt."""
    pacs = Memory()
    pacs.failures = iter([None, PacsRefused("0xA900"), None])
    assert run(folder, pacs) == [("stored", 1), ("dead", 1), ("stored", 1)]
    assert Ledger.read(folder).dead[0].problem.type == "/problems/pacs-refused"


def test_what_is_busy_for_ever_is_a_dead_letter(folder: Path) -> None:
    """After the attempts that patience allows."""
    pacs = Memory()
    pacs.failures = itertools.chain([PacsBusy("503")] * ATTEMPTS, itertools.repeat(None))
    assert run(folder, pacs)[0] == ("dead", ATTEMPTS)


def test_an_older_object_that_the_pacs_keeps_is_found_out(folder: Path) -> None:
    """Success was answered; what is there is something else."""
    pacs = Memory()
    older = dcmread(folder / OBJECTS / "1.dcm")
    older.PixelData = bytes(len(older.PixelData))
    file = io.BytesIO()
    older.save_as(file)
    pacs.objects[str(older.SOPInstanceUID)] = file.getvalue()
    assert run(folder, pacs) == [("stored", 1), ("dead", 1), ("stored", 1)]
    assert Ledger.read(folder).dead[0].problem.type == "/problems/object-not-kept"


def test_an_object_that_is_not_found_again_was_not_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A success that nothing follows from is asked for a few times, then given up."""
    monkeypatch.setattr(Memory, "holds", lambda *_: False)
    assert run(folder, Memory()) == [("dead", ATTEMPTS)] * 3
