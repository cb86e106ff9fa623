from pathlib import Path

import pytest
from orthanc import Orthanc, free_port

from service.pacs.check import examine_pacs
from service.pacs.config import Pacs
from tests.service.pacs.conftest import MOVE_PORT, Stub


def examine(**pacs: object) -> dict[str, tuple[bool, str]]:
    """Return success and outcome of each check by its name."""
    return {check.name: (check.ok, check.found) for check in examine_pacs(Pacs.model_validate(pacs))}


@pytest.mark.pacs
def test_a_pacs_that_can_be_used_passes(orthanc: Orthanc, series_files: list[Path]) -> None:
    """DICOMweb and Orthanc's change log work, and the checks store nothing."""
    checks = examine(url=orthanc.dicomweb, orthanc=orthanc.url)
    assert list(checks) == ["QIDO-RS", "WADO-RS", "STOW-RS", "Orthanc /changes"]
    assert all(ok for ok, _ in checks.values())
    assert "nothing yet" in checks["WADO-RS"][1]
    assert orthanc.get("/instances") == []

    orthanc.send(series_files[0])
    assert "bytes" in examine(url=orthanc.dicomweb)["WADO-RS"][1]
    assert len(orthanc.get("/instances")) == 1


@pytest.mark.pacs
def test_a_pacs_without_dicomweb_passes(orthanc: Orthanc) -> None:
    """C-ECHO and C-FIND work, and the PACS accepts the SOP classes of results."""
    checks = examine(dimse={"host": "127.0.0.1", "port": orthanc.dicom_port, "aet": "ORTHANC", "move_port": MOVE_PORT})
    assert list(checks) == ["C-ECHO", "C-FIND", "C-STORE"]
    assert all(ok for ok, _ in checks.values())


def test_a_wrong_address_differs_from_a_missing_right(stub: Stub) -> None:
    """Each has its own advice."""
    gone = f"http://127.0.0.1:{free_port()}/dicom-web"
    assert "refused or dropped the connection" in examine(url=gone)["QIDO-RS"][1]

    stub.says(200, b"<html>", "text/html")
    assert "DICOMweb root" in examine(url=stub.url)["QIDO-RS"][1]

    stub.answers.clear()
    stub.says(200, b"[]").says(200, b"[]").says(403)
    checks = examine(url=stub.url)
    assert checks["QIDO-RS"][0]
    assert checks["STOW-RS"] == (
        False,
        "The PACS does not let this service store. Give its user that right, and check whether STOW-RS is switched on.",
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_after_a_failure_the_rest_is_not_tried() -> None:
    """If C-ECHO fails, the other checks are skipped."""
    dimse = {"host": "127.0.0.1", "port": free_port(), "aet": "OLD"}
    checks = examine(dimse=dimse)
    assert list(checks) == ["C-ECHO"]
    assert not checks["C-ECHO"][0]
