import datetime as dt
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID

from service.errors import (
    AmbiguousSeries,
    JobNotFound,
    PacsNotFound,
    PacsUnreachable,
    SeriesNotFound,
    UnsuitableSeries,
)
from service.jobs.pacs.status import DicomOrder, inner_of
from service.pacs.ledger import OBJECTS
from service.pacs.schemas import DicomJob
from service.pacs.selection import Selection
from service.schemas import FINISHED
from tests.service.jobs.pacs.conftest import SERIES, Site

pytestmark = pytest.mark.pacs


def test_a_series_goes_in_and_its_results_come_back(site: Site) -> None:
    """A series is pulled, segmented, built, stored and verified; the ordinary job is visible, too."""
    job = site.ask()
    done = site.wait(job)

    assert (done.state, done.problem) == ("succeeded", None)
    assert [delivered.state for delivered in done.objects] == ["stored", "stored"]
    assert [delivered.attempts for delivered in done.objects] == [1, 1]
    assert site.held() == {"CT": 6, "OT": 2}
    inner = site.jobs.queue.find("local", inner_of("local", job.id))
    assert inner.state == "succeeded"
    assert done.links.segmentation == inner.links.self
    assert not (site.state.dicom / job.id / OBJECTS).exists()


def test_asking_twice_is_one_job(site: Site) -> None:
    """Equal requests are one job with one computation and one result; another key makes another job."""
    first, second = site.ask(), site.ask()
    site.wait(first)
    third = site.ask()
    assert first.id == second.id == third.id
    assert site.executor.cases == 1
    assert site.held()["OT"] == 2
    assert site.ask(key="again").id != first.id


def test_late_slices_are_another_job(site: Site, tmp_path: Path) -> None:
    """Late images change the digest and make another job; the earlier result remains."""
    first = site.wait(site.ask())
    image = dcmread(tmp_path / "5.dcm")
    step = [
        float(b) - float(a)
        for a, b in zip(dcmread(tmp_path / "4.dcm").ImagePositionPatient, image.ImagePositionPatient, strict=True)
    ]
    image.ImagePositionPatient = [float(b) + d for b, d in zip(image.ImagePositionPatient, step, strict=True)]
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.7")
    image.save_as(tmp_path / "late.dcm")
    site.orthanc.send(tmp_path / "late.dcm")

    second = site.wait(site.ask())
    again = site.wait(site.ask(key="again"))

    assert second.id != first.id
    # A repetition replaces what the first job replaced: the first job's objects do not count as earlier ones.
    assert site.jobs.worker.superseded(again.id, _order(site, again)) == site.jobs.worker.superseded(
        second.id, _order(site, second)
    )
    assert second.instances != first.instances
    assert site.held() == {"CT": 7, "OT": 6}  # `build` names its objects after the job
    told = {series["MainDicomTags"].get("SeriesDescription") for series in site.orthanc.get("/series?expand")}
    assert first.objects[1].uid in told  # the report of the earlier result


def _order(site: Site, job: DicomJob) -> DicomOrder:
    return DicomOrder.of(site.jobs._status("local", job.id))


def test_a_series_is_selected_by_what_it_is_like(site: Site) -> None:
    """Modality and number of images select a series of the study; results never fit."""
    site.wait(site.ask())
    select = Selection(modality="CT", min_instances=6)
    assert site.ask(series=None, select=select).series == SERIES
    with pytest.raises(SeriesNotFound, match="3 series"):
        site.ask(series=None, select=Selection(modality="MR"))
    with pytest.raises(SeriesNotFound):
        site.ask(series=None, select=Selection(modality="OT"))


def test_several_series_that_fit_are_told_by_number(site: Site, tmp_path: Path) -> None:
    """Several fitting series are an error with their image counts."""
    for path in sorted(tmp_path.glob("?.dcm"))[:2]:
        image = dcmread(path)
        image.SeriesInstanceUID = "1.2.77"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"{image.SOPInstanceUID}.77")
        image.save_as(tmp_path / "other.dcm")
        site.orthanc.send(tmp_path / "other.dcm")
    with pytest.raises(AmbiguousSeries, match=r"2 series fit the selection, of (6, 2|2, 6) images"):
        site.ask(series=None)


def test_results_are_never_segmented(site: Site) -> None:
    """Results are refused by modality and by manufacturer, even if a query does not return the latter."""
    site.wait(site.ask())
    (result,) = (
        series
        for series in site.orthanc.get("/series?expand")
        if series["MainDicomTags"]["Modality"] == "OT" and series["MainDicomTags"]["SeriesInstanceUID"].endswith(".0.1")
    )
    with pytest.raises(UnsuitableSeries):
        site.ask(series=result["MainDicomTags"]["SeriesInstanceUID"])


def test_what_does_not_exist_is_said_at_once(site: Site) -> None:
    """Unknown PACS, series and jobs, and an unreachable PACS, are errors of the request."""
    with pytest.raises(PacsNotFound):
        site.ask(pacs="nowhere")
    with pytest.raises(PacsNotFound):
        site.ask(destination="nowhere")
    with pytest.raises(SeriesNotFound):
        site.ask(series="1.2.99")
    with pytest.raises(PacsUnreachable):
        site.ask(pacs="gone")
    job = site.wait(site.ask())
    with pytest.raises(JobNotFound):
        site.jobs.find("other", job.id)


def test_a_pacs_that_is_gone_is_waited_for(site: Site) -> None:
    """The job shows what it waits for, survives a restart of the service, and can be cancelled."""
    job = site.ask(destination="gone")
    waiting = site.wait(job, lambda job: job.waits_for is not None)
    assert (waiting.state, waiting.stage) == ("running", "push")
    assert waiting.waits_for is not None
    assert waiting.waits_for.type == "/problems/pacs-unreachable"

    site.end()
    site.begin()

    site.wait(job, lambda job: job.objects[0].attempts > waiting.objects[0].attempts)
    assert site.jobs.cancel("local", job.id).state == "cancelled"
    time.sleep(1.5)
    attempts = site.jobs.find("local", job.id).objects[0].attempts
    time.sleep(1.5)
    assert site.jobs.find("local", job.id).objects[0].attempts == attempts  # no further attempts
    assert site.executor.cases == 1


@pytest.mark.parametrize("is_recorded", [False, True], ids=["within its step", "after its step"])
def test_an_unfinished_job_of_the_version_before_is_finished(site: Site, *, is_recorded: bool) -> None:
    """An earlier version pulled, segmented and built in one step, without a child workflow; its jobs are completed."""
    job = site.wait(site.ask())
    site.end()
    inner = inner_of("local", job.id)
    with closing(sqlite3.connect(site.state.database)) as database, database:
        for statement, parameters in (
            ("DELETE FROM operation_outputs WHERE workflow_uuid = ?", (f"{job.id}-0",)),
            ("DELETE FROM workflow_status WHERE workflow_uuid = ?", (f"{job.id}-0",)),
            ("DELETE FROM operation_outputs WHERE workflow_uuid = ? AND function_id > ?", (job.id, int(is_recorded))),
            ("UPDATE operation_outputs SET output = ? WHERE workflow_uuid = ?", ('{"failure":null}', job.id)),
            ("DELETE FROM workflow_output WHERE workflow_uuid = ?", (job.id,)),
            ("UPDATE workflow_status SET status = 'PENDING', completed_at = NULL WHERE workflow_uuid = ?", (job.id,)),
            ("UPDATE workflow_status SET parent_workflow_id = NULL WHERE workflow_uuid = ?", (inner,)),
        ):
            database.execute(statement, parameters)
    if not is_recorded:
        shutil.rmtree(site.state.dicom / job.id)
    site.begin()

    done = site.wait(job, lambda job: job.state in FINISHED and bool(site.jobs._pushes(job.id)))
    assert done.state == "succeeded"
    assert [delivered.state for delivered in done.objects] == ["stored", "stored"]
    assert site.executor.cases == 1
    assert site.held() == {"CT": 6, "OT": 2}


def test_what_is_erased_is_gone_here_and_stays_there(site: Site) -> None:
    """Erasing removes job, scan, result and ledger; the PACS keeps its objects."""
    job = site.wait(site.ask())
    scan = site.jobs.queue.find("local", inner_of("local", job.id)).scan
    assert site.state.scan("local", scan).is_file()
    site.jobs.erase("local", job.id)
    with pytest.raises(JobNotFound):
        site.jobs.find("local", job.id)
    with pytest.raises(JobNotFound):
        site.jobs.queue.find("local", inner_of("local", job.id))
    assert list(site.state.dicom.iterdir()) == []
    assert not site.state.scan("local", scan).exists()
    assert site.held()["OT"] == 2


def test_what_is_old_is_erased(site: Site) -> None:
    """Finished jobs are erased by the time of their creation; a job that waits for its PACS is kept."""
    done, waiting = site.wait(site.ask()), site.ask(destination="gone")
    site.wait(waiting, lambda job: job.waits_for is not None)
    assert site.jobs.erase_finished(done.created - dt.timedelta(days=1)) == 0
    assert site.jobs.erase_finished(dt.datetime.now(dt.UTC) + dt.timedelta(days=1)) == 1
    assert [job.id for job in site.jobs.page("local", 10)] == [waiting.id]


def test_no_name_of_a_patient_is_in_log_ledger_or_database(
    site: Site, canary: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Patient names are only in scans and objects, even after errors."""
    site.wait(site.ask())
    site.wait(site.ask(destination="gone"), lambda job: job.waits_for is not None)
    captured = capfd.readouterr()
    assert canary not in captured.out + captured.err + caplog.text
    checked = [
        path for path in site.state.root.rglob("*") if path.is_file() and path.suffix in (".json", ".sqlite", "")
    ]
    assert all(canary.encode() not in path.read_bytes() for path in checked if site.state.scans not in path.parents)
    assert any(path.name == "ledger.json" for path in checked)
