import json
import time
from pathlib import Path

import pytest
from orthanc import Orthanc as Child
from orthanc import free_port

from service.errors import CalibrantError, PacsBadResponse, PacsBusy, PacsRefused, PacsUnreachable
from service.pacs.changes import Changes, Orthanc, Position
from service.pacs.config import Pacs
from tests.service.pacs.conftest import Stub

SERIES = "1.2.5"


def connect(url: str) -> Orthanc:
    """Return a connection."""
    return Orthanc(Pacs.model_validate({"url": f"{url}/dicom-web", "orthanc": url, "timeout_s": 5}))


@pytest.mark.pacs
def test_a_series_sent_in_two_halves_becomes_stable_twice(orthanc: Child, series_files: list[Path]) -> None:
    """Stable is not complete: each event is only a hint, and an earlier position shows it again."""
    changes = connect(orthanc.url)
    start = position = changes.end()
    events = []
    for half in (series_files[:3], series_files[3:]):
        orthanc.send(*half)
        deadline = time.monotonic() + 20
        while not (page := changes.since(position)).series:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        events += page.series
        position = page.last
    assert events == [SERIES, SERIES]
    assert changes.since(start).series == [SERIES]
    assert changes.since(position) == Changes([], position, done=True)
    changes.close()


@pytest.mark.pacs
def test_a_new_database_behind_the_address_is_followed_from_its_end(orthanc: Child) -> None:
    """A position beyond the last change comes from another database."""
    changes = connect(orthanc.url)
    assert changes.since(10**9).last == changes.end()
    changes.close()


@pytest.mark.pacs
def test_a_series_that_was_deleted_meanwhile_is_skipped(stub: Stub) -> None:
    """The change log still lists it."""
    event = {"ChangeType": "StableSeries", "ID": "0" * 44, "Seq": 5}
    stub.says(200, json.dumps({"Changes": [event], "Done": True, "Last": 5}).encode()).says(404)
    changes = connect(stub.url.removesuffix("/dicom-web"))
    assert changes.since(4) == Changes([], 5, done=True)
    assert stub.asked[1] == f"GET /series/{'0' * 44}"
    changes.close()


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (503, b"", PacsBusy),
        (401, b"", PacsRefused),
        (200, b"<html>", PacsBadResponse),
        (200, b"[]", PacsBadResponse),
        (200, b'{"Last": "many"}', PacsBadResponse),
    ],
)
def test_bad_answers_have_names(stub: Stub, status: int, content: bytes, error: type[CalibrantError]) -> None:
    """Each bad answer becomes a PacsError, after which the poller goes on."""
    stub.says(status, content)
    changes = connect(stub.url)
    with pytest.raises(error):
        changes.since(0)
    changes.close()


def test_a_closed_port_is_unreachable() -> None:
    """If nothing listens at the address, the error is the temporary PacsUnreachable, so the poller tries again."""
    changes = connect(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PacsUnreachable):
        changes.end()
    changes.close()


def test_the_position_survives_a_restart(tmp_path: Path) -> None:
    """A stored position is read back by a new object; it is None until the first one is stored."""
    assert Position(tmp_path / "clinic").read() is None
    Position(tmp_path / "clinic").write(17)
    Position(tmp_path / "clinic").write(18)
    assert Position(tmp_path / "clinic").read() == 18
    assert [path.name for path in tmp_path.iterdir()] == ["clinic"]
