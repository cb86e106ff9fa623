import datetime as dt
import os
import shutil
import sqlite3
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from service.bundle.registry import DEFAULT_MODEL, Registry
from service.errors import (
    AmbiguousSeries,
    DeadLetterNotFound,
    JobNotFound,
    PacsNotFound,
    PacsUnreachable,
    SeriesNotFound,
    UnsuitableSeries,
)
from service.executors.embedded import EmbeddedExecutor
from service.jobs.database import open_database
from service.jobs.pacs.queue import PacsJobs
from service.jobs.pacs.series import PacsRequest
from service.jobs.pacs.status import DicomOrder, inner_of
from service.jobs.segmentation.queue import SegmentationJobs
from service.observability.metrics import Metrics
from service.pacs import patience, web
from service.pacs.config import PacsFile
from service.pacs.ledger import OBJECTS
from service.pacs.schemas import DicomJob
from service.pacs.selection import Selection
from service.pacs.web import DicomWeb
from service.schemas import FINISHED, CaseResult, DicomObject, Superseded
from service.storage.local import StateDirectory
from tests.service.jobs.conftest import RESULT_JSON, write_result

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))

from orthanc import Orthanc, free_port, is_installed

pytestmark = pytest.mark.pacs

STUDY, SERIES = "1.2.4", "1.2.5"


class Computes(EmbeddedExecutor):
    """Computes nothing, counts the cases and may be held back."""

    def __init__(self) -> None:
        super().__init__(device="cpu", deadline_s=1.0)
        self.cases = 0
        self.released = threading.Event()
        self.released.set()

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    def stop(self) -> None:
        """Nothing runs."""

    def run(self, scan: Path, _: object, out: Path, *__: object) -> CaseResult:
        """Write a small result."""
        self.cases += 1
        assert self.released.wait(60)
        assert scan.read_bytes().startswith(b"PK")
        write_result(out, "mask")
        return CaseResult.model_validate_json(RESULT_JSON)


def build(
    result: Path, work: Path, objects: Collection[DicomObject], _: float, supersedes: Superseded | None
) -> list[Path]:
    """Return a small image for each object; the same result gives the same."""
    paths = []
    for number, kind in enumerate(objects):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        uid = f"2.25.{int(result.name, 16) % 10**30}.{number}"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
        image.StudyInstanceUID, image.SeriesInstanceUID = STUDY, f"{uid}.1"
        image.PatientName = image.PatientID = "CNRY-73019"
        image.Modality, image.Manufacturer = "OT", "Calibrant"
        if supersedes:
            image.SeriesDescription = supersedes.sop_instance_uid
        image.Rows = image.Columns = 2
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit, image.PixelRepresentation = 7, 0
        image.PixelData = bytes([number, 1, 2, 3])
        paths.append(work / f"{kind}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


class Site:
    """A service with a PACS; the service can be restarted."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self.orthanc = Orthanc(root / "orthanc").start()
        self.state = StateDirectory.open(root / "state")
        self.registry = registry
        self.executor = Computes()
        gone = f"http://127.0.0.1:{free_port()}/dicom-web"
        self.file = PacsFile.model_validate(
            {"pacs": {"clinic": {"url": self.orthanc.dicomweb, "orthanc": self.orthanc.url}, "gone": {"url": gone}}}
        )
        self.jobs: PacsJobs
        self.begin()

    def begin(self) -> None:
        """Start the service on whatever an earlier one left."""
        queue = SegmentationJobs(self.state, self.registry, self.executor, Metrics(), open_database(self.state, None))
        self.jobs = PacsJobs(queue, self.state, self.file, build, 10)
        queue.launch(self.jobs.register)
        self.jobs.start()

    def end(self) -> None:
        """End the service."""
        self.jobs.close()
        self.jobs.queue.close()

    def ask(self, key: str | None = None, **changes: object) -> DicomJob:
        """Submit the series, or another request."""
        model = self.registry.find(DEFAULT_MODEL).identity
        request = {
            "owner": "local",
            "pacs": "clinic",
            "study": STUDY,
            "series": SERIES,
            "select": Selection(),
            "model": model,
            "objects": ("seg", "sr"),
            "destination": "clinic",
        }
        return self.jobs.submit(PacsRequest(**(request | changes)), key)  # type: ignore[arg-type]

    def wait(self, job: DicomJob, until: Callable[[DicomJob], bool] | None = None) -> DicomJob:
        """Return the job once it has finished or a condition holds."""
        deadline = time.monotonic() + 90
        until = until or (lambda job: job.state in FINISHED)
        while not until(found := self.jobs.find("local", job.id)):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found

    def held(self) -> dict[str, int]:
        """Return how many objects of each modality the PACS holds."""
        found: dict[str, int] = {}
        for series in self.orthanc.get("/series?expand"):
            modality = series["MainDicomTags"]["Modality"]
            found[modality] = found.get(modality, 0) + len(series["Instances"])
        return found


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Site]:
    """Yield a service and an Orthanc for all tests of this file."""
    if not is_installed():
        msg = "Orthanc is absent: apt-get install orthanc orthanc-dicomweb dcmtk"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    site = Site(tmp_path_factory.mktemp("site"), registry)
    yield site
    site.end()
    site.orthanc.kill()


@pytest.fixture
def site(
    whole_site: Site,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    slices_of: Callable[..., list[Dataset]],
    dicom_file: Callable[[Dataset], bytes],
) -> Iterator[Site]:
    """Yield a site whose PACS holds one series of six images and whose service has no jobs; pauses are short."""
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.05)
    whole_site.orthanc.clear()
    whole_site.executor.cases = 0
    whole_site.jobs.worker.breakers.clear()
    for k, image in enumerate(slices_of()):
        (tmp_path / f"{k}.dcm").write_bytes(dicom_file(image))
    whole_site.orthanc.send(*sorted(tmp_path.glob("*.dcm")))
    yield whole_site
    for job in whole_site.jobs.page("local", 200):
        whole_site.jobs.erase("local", job.id)


def test_a_series_goes_in_and_its_results_come_back(site: Site) -> None:
    """A series is pulled, segmented, built, stored and verified; the ordinary job is visible, too."""
    job = site.ask()
    done = site.wait(job)

    assert (done.state, done.problem) == ("succeeded", None)
    assert [each.state for each in done.objects] == ["stored", "stored"]
    assert [each.attempts for each in done.objects] == [1, 1]
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
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.7"
    image.save_as(tmp_path / "late.dcm")
    site.orthanc.send(tmp_path / "late.dcm")

    second = site.wait(site.ask())
    again = site.wait(site.ask(key="again"))

    assert second.id != first.id
    # A repetition replaces what the first of its kind has replaced: its own objects are not earlier ones.
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
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID}.77"
        image.save_as(tmp_path / "other.dcm")
        site.orthanc.send(tmp_path / "other.dcm")
    with pytest.raises(AmbiguousSeries, match=r"2 series fit the selection, of (6, 2|2, 6) images"):
        site.ask(series=None)


def test_results_are_never_segmented(site: Site) -> None:
    """Results are refused by modality and by manufacturer, even if a query does not return the latter."""
    site.wait(site.ask())
    (result,) = (
        each
        for each in site.orthanc.get("/series?expand")
        if each["MainDicomTags"]["Modality"] == "OT" and each["MainDicomTags"]["SeriesInstanceUID"].endswith(".0.1")
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
    assert waiting.waits_for.type == "/problems/pacs-unreachable"

    site.end()
    site.begin()

    site.wait(job, lambda job: job.objects[0].attempts > waiting.objects[0].attempts)
    assert site.jobs.cancel("local", job.id).state == "cancelled"
    time.sleep(1.5)
    attempts = site.jobs.find("local", job.id).objects[0].attempts
    time.sleep(1.5)
    assert site.jobs.find("local", job.id).objects[0].attempts == attempts  # it is left alone
    assert site.executor.cases == 1


def test_an_erased_segmentation_ends_its_job(site: Site) -> None:
    """If a user erases the segmentation that a DICOM job waits for, the DICOM job fails instead of waiting for ever."""
    site.executor.released.clear()
    try:
        job = site.ask()
        site.wait(job, lambda job: job.stage == "segment" and job.links.segmentation is not None)
        site.jobs.queue.erase("local", inner_of("local", job.id))
        done = site.wait(job)
    finally:
        site.executor.released.set()

    assert done.state == "failed"
    assert done.problem is not None
    assert done.problem.type in ("/problems/job-cancelled", "/problems/job-not-found")


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


def test_orthanc_killed_in_the_middle_of_a_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Orthanc is killed after storing the first object and before answering, the result is complete in the end."""
    store, killed = DicomWeb.store, threading.Event()

    def store_and_kill(self: DicomWeb, path: Path) -> None:
        store(self, path)
        if not killed.is_set():
            site.orthanc.kill()
            killed.set()
            msg = "The connection was lost."
            raise PacsUnreachable(msg)

    monkeypatch.setattr(DicomWeb, "store", store_and_kill)
    job = site.ask()
    assert killed.wait(90)
    site.wait(job, lambda job: job.waits_for is not None)
    site.orthanc.start()
    done = site.wait(job)

    assert [each.state for each in done.objects] == ["stored", "stored"]
    assert site.held() == {"CT": 6, "OT": 2}


def test_orthanc_killed_in_the_middle_of_a_body(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Orthanc is killed after half of the first object, the result is complete in the end."""
    whole, killed = web.body_of, threading.Event()

    def body_of(path: Path) -> tuple[int, Iterator[bytes]]:
        length, body = whole(path)
        content = b"".join(body)

        def pieces() -> Iterator[bytes]:
            yield content[: length // 2]
            if not killed.is_set():
                site.orthanc.kill()
                killed.set()
            yield content[length // 2 :]

        return length, pieces()

    monkeypatch.setattr(web, "body_of", body_of)
    job = site.ask()
    assert killed.wait(90)
    site.wait(job, lambda job: job.waits_for is not None)
    site.orthanc.start()
    done = site.wait(job)

    assert [each.state for each in done.objects] == ["stored", "stored"]
    assert site.held() == {"CT": 6, "OT": 2}


def test_a_result_that_the_pacs_silently_keeps_an_older_one_of(site: Site) -> None:
    """If Orthanc reports success but keeps an older object, the job reports that and can be retried."""
    first = site.wait(site.ask())
    site.jobs.erase("local", first.id)
    # The same identifiers with other content, as a result would have whose key forgot something.
    original = site.jobs.worker.build

    def build_other(*arguments: Any) -> list[Path]:  # noqa: ANN401 - passed on
        paths = original(*arguments)
        image = dcmread(paths[0])
        image.PixelData = b"\xff" * 4
        image.save_as(paths[0])
        return paths

    site.jobs.worker.build = build_other
    try:
        done = site.wait(site.ask())
    finally:
        site.jobs.worker.build = original
    assert done.state == "failed"
    assert done.problem.type == "/problems/object-not-kept"
    assert [each.state for each in done.objects] == ["dead", "stored"]
    assert [each.id for each in site.jobs.dead_letters("local")] == [done.id]
    assert site.jobs.dead_letters("other") == []

    for each in site.orthanc.get("/instances?expand"):
        if each["MainDicomTags"]["SOPInstanceUID"] == done.objects[0].uid:
            httpx.delete(f"{site.orthanc.url}/instances/{each['ID']}")
    site.jobs.retry("local", done.id)
    assert site.wait(done).state == "succeeded"
    assert site.held() == {"CT": 6, "OT": 2}
    with pytest.raises(DeadLetterNotFound):
        site.jobs.retry("local", done.id)


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


def test_half_a_series_is_never_segmented(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PACS that first sends too few images, then garbage, is asked again until the series is complete."""
    fetch = DicomWeb.fetch_series
    answers = [
        lambda pacs, *place: islice(fetch(pacs, *place), 4),
        lambda *_: iter([b"<html>"]),
        fetch,
    ]

    def next_answer(pacs: DicomWeb, *place: str) -> Iterator[bytes]:
        return answers.pop(0)(pacs, *place)

    monkeypatch.setattr(DicomWeb, "fetch_series", next_answer)
    done = site.wait(site.ask())
    assert (done.state, answers, site.executor.cases) == ("succeeded", [], 1)
    inner = site.jobs.queue.find("local", inner_of("local", done.id))
    with zipfile.ZipFile(site.state.scan("local", inner.scan)) as archive:
        assert len(archive.namelist()) == 6


def test_what_names_this_service_in_its_files_is_refused(site: Site, tmp_path: Path) -> None:
    """Pulled images made by this service are refused, even if the query did not show their maker."""
    image = dcmread(tmp_path / "0.dcm")
    part = Dataset()
    part.Manufacturer = "Calibrant"
    image.ContributingEquipmentSequence = [part]
    image.SeriesInstanceUID = "1.2.88"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.88.1"
    image.save_as(tmp_path / "ours.dcm")
    site.orthanc.send(tmp_path / "ours.dcm")
    done = site.wait(site.ask(series="1.2.88"))
    assert (done.state, done.problem.type, site.executor.cases) == ("failed", "/problems/unsuitable-series", 0)


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
