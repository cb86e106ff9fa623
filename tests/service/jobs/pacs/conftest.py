"""A service with a PACS, an Orthanc, for the tests that deliver to one."""

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from service.bundle.registry import DEFAULT_MODEL, Registry
from service.errors import ScanNotAccepted
from service.executors.embedded import EmbeddedExecutor
from service.executors.pool import ExecutorPool
from service.jobs.database import open_database
from service.jobs.pacs.queue import PacsJobs
from service.jobs.pacs.series import PacsRequest
from service.jobs.segmentation.queue import SegmentationJobs
from service.observability.metrics import Metrics
from service.pacs import patience
from service.pacs.config import PacsFile
from service.pacs.schemas import DicomJob
from service.pacs.selection import Selection
from service.result.files import SUMMARY
from service.schemas import FINISHED, CaseResult, DicomObject, Superseded
from service.storage.local import StateDirectory
from tests.service.jobs.conftest import RESULT_JSON, SUMMARY_JSON, write_result

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))

from orthanc import Orthanc, free_port, is_installed

STUDY, SERIES = "1.2.4", "1.2.5"


class Computes(EmbeddedExecutor):
    """Computes nothing, counts the cases and may be held back, refuse, or withdraw its results."""

    def __init__(self) -> None:
        super().__init__(deadline_s=1.0)
        self.cases = 0
        self.released = threading.Event()
        self.released.set()
        self.refuses = self.withdraws = False

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
        if self.refuses:
            msg = "Modality is CT; accepted: MR."
            raise ScanNotAccepted(msg)
        write_result(out, "mask")
        if self.withdraws:
            (out / SUMMARY).write_text(SUMMARY_JSON.replace('"holds"', '"withdrawn"'))
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
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(uid)
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
            {
                "pacs": {
                    "clinic": {"url": self.orthanc.dicomweb, "orthanc": self.orthanc.url},
                    "told": {"url": self.orthanc.dicomweb, "refused": True, "withdrawn": ["seg", "sr"]},
                    "gone": {"url": gone},
                }
            }
        )
        self.jobs: PacsJobs
        self.begin()

    def begin(self) -> None:
        """Start the service on whatever an earlier one left."""
        pool = ExecutorPool([self.executor])
        queue = SegmentationJobs(self.state, self.registry, pool, Metrics(), open_database(self.state, None))
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
        while not until(current := self.jobs.find("local", job.id)):
            assert time.monotonic() < deadline, current
            time.sleep(0.02)
        return current

    def held(self) -> dict[str, int]:
        """Return how many objects of each modality the PACS holds."""
        counts: dict[str, int] = {}
        for series in self.orthanc.get("/series?expand"):
            modality = series["MainDicomTags"]["Modality"]
            counts[modality] = counts.get(modality, 0) + len(series["Instances"])
        return counts


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
    whole_site.executor.refuses = whole_site.executor.withdraws = False
    whole_site.jobs.worker.breakers.clear()
    for k, image in enumerate(slices_of()):
        (tmp_path / f"{k}.dcm").write_bytes(dicom_file(image))
    whole_site.orthanc.send(*sorted(tmp_path.glob("*.dcm")))
    yield whole_site
    for job in whole_site.jobs.page("local", 200):
        whole_site.jobs.erase("local", job.id)
