import threading
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from service.errors import (
    DeadLetterNotFound,
    PacsUnreachable,
)
from service.jobs.pacs.status import inner_of
from service.pacs import multipart, web
from service.pacs.ledger import Ledger
from service.pacs.web import DicomWeb
from tests.service.jobs.pacs.conftest import Site

pytestmark = pytest.mark.pacs


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
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.88.1")
    image.save_as(tmp_path / "ours.dcm")
    site.orthanc.send(tmp_path / "ours.dcm")
    done = site.wait(site.ask(series="1.2.88"))
    assert done.problem is not None
    assert (done.state, done.problem.type, site.executor.cases) == ("failed", "/problems/unsuitable-series", 0)


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

    assert [delivered.state for delivered in done.objects] == ["stored", "stored"]
    assert site.held() == {"CT": 6, "OT": 2}


def test_orthanc_killed_in_the_middle_of_a_body(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Orthanc is killed after half of the first object, the result is complete in the end."""
    whole, killed = multipart.body_of, threading.Event()

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

    assert [delivered.state for delivered in done.objects] == ["stored", "stored"]
    assert site.held() == {"CT": 6, "OT": 2}


def test_a_result_that_the_pacs_silently_keeps_an_older_one_of(site: Site) -> None:
    """If Orthanc reports success but keeps an older object, the job reports that and can be retried."""
    first = site.wait(site.ask())
    site.jobs.erase("local", first.id)
    # The same identifiers with other content, as if the key of a result had omitted an input.
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
    assert done.problem is not None
    assert done.problem.type == "/problems/object-not-kept"
    assert [delivered.state for delivered in done.objects] == ["dead", "stored"]
    assert [job.id for job in site.jobs.dead_letters("local")] == [done.id]
    assert site.jobs.dead_letters("other") == []

    for instance in site.orthanc.get("/instances?expand"):
        if instance["MainDicomTags"]["SOPInstanceUID"] == done.objects[0].uid:
            httpx.delete(f"{site.orthanc.url}/instances/{instance['ID']}")
    site.jobs.retry("local", done.id)
    assert site.wait(done).state == "succeeded"
    assert site.held() == {"CT": 6, "OT": 2}
    with pytest.raises(DeadLetterNotFound):
        site.jobs.retry("local", done.id)


def names_of(site: Site, identifier: str) -> list[str]:
    """Return the names of the objects in a job's ledger."""
    ledger = Ledger.read(site.state.dicom / identifier)
    return [entry.file for entry in ledger.entries] if ledger else []


def test_of_a_withdrawn_result_a_pacs_gets_no_segmentation(site: Site) -> None:
    """By default only the report is stored; a destination that wants the segmentation all the same gets it."""
    site.executor.withdraws = True
    done = site.wait(site.ask())
    assert (done.state, done.statement, names_of(site, done.id)) == ("succeeded", "withdrawn", ["sr.dcm"])

    told = site.wait(site.ask(destination="told"))
    assert (told.state, names_of(site, told.id)) == ("succeeded", ["seg.dcm", "sr.dcm"])


def test_a_refused_series_is_reported_where_that_is_wanted(site: Site) -> None:
    """The job fails with the reason either way; one destination gets a report that says it, the other nothing."""
    site.executor.refuses = True
    silent, told = site.wait(site.ask()), site.ask(destination="told")
    told = site.wait(told, lambda job: bool(job.objects) and job.objects[0].state == "stored")

    for job in (silent, told):
        assert job.problem is not None
        assert (job.state, job.problem.type) == ("failed", "/problems/scan-not-accepted")
    assert (names_of(site, silent.id), names_of(site, told.id)) == ([], ["sr.dcm"])
    assert site.held()["SR"] == 1
