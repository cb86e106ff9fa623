import hashlib
import json
from pathlib import Path

import httpx
import pytest

from tests.service.api.monailabel.conftest import Labelling, Slicer


@pytest.fixture
def path(tmp_path: Path, tiny_scan: bytes) -> Path:
    """Return a scan under a name that must not leak."""
    path = tmp_path / "DOE^JANE.nii"
    path.write_bytes(tiny_scan)
    return path


def test_a_session_is_the_stored_scan(connected: Slicer, labelling: Labelling, path: Path) -> None:
    """The session's id is the SHA-256 of the file, by which the ordinary interface knows the scan."""
    session = connected.create_session(path)

    assert session == hashlib.sha256(path.read_bytes()).hexdigest()
    scan = httpx.get(f"{labelling.url}/v1/scans/{session}", headers=connected.headers).json()
    assert scan == {"id": session, "bytes": path.stat().st_size}
    assert "JANE" not in connected.method("GET", f"/session/{session}")[1].decode()


@pytest.mark.parametrize("session", ["0" * 64, "x", "..%2F..%2Fetc%2Fpasswd", "None"])
def test_a_session_that_there_is_not_is_null(connected: Slicer, session: str) -> None:
    """An unknown session is answered with 200 and null, so that 3D Slicer sends the scan again."""
    assert connected.method("GET", f"/session/{session.replace('%2F', '%252F')}") == (200, b"null")
    assert connected.method("DELETE", f"/session/{session.replace('%2F', '%252F')}") == (200, b"null")


def test_a_session_that_ends_takes_its_scan_along(connected: Slicer, path: Path) -> None:
    """Ending a session erases its scan at once if no segmentation was made from it."""
    session = connected.create_session(path)

    status, answer = connected.method("DELETE", f"/session/{session}")

    assert (status, json.loads(answer)["name"]) == (200, session)
    assert not connected.has_session(session)


def test_a_scan_that_was_segmented_outlives_its_session(connected: Slicer, labelling: Labelling, path: Path) -> None:
    """A segmentation keeps the scan of an ended session; erasing it erases the scan."""
    session = connected.create_session(path)
    _, params = connected.infer("hippocampus-mr", "", {}, session)

    assert connected.method("DELETE", f"/session/{session}")[0] == 200

    with httpx.Client(base_url=labelling.url, headers=connected.headers) as http:
        assert http.get(params["job_url"]).json()["scan"] == session
        assert connected.has_session(session)
        assert http.delete(params["job_url"]).status_code == 204
    assert not connected.has_session(session)
