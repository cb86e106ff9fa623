"""Real scans as DICOM series through a running service, as a PACS gateway would send them; the objects read back."""

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from service.bundle.schema import ServiceConfig
from tests.dicom_checks import faults_of, labels_by_place, program
from tests.dicom_series import CANARY_NAME, Identity, series_of_array, zip_of_series

ROUTE = "/v1/segmentations"


@pytest.fixture
def tiny_config(tiny_config: ServiceConfig) -> ServiceConfig:
    """Return the tiny network on voxels of 8 mm, so that a whole abdomen takes seconds."""
    return tiny_config.model_copy(update={"spacing_mm": (8.0, 8.0, 8.0), "modality": "CT"})


@pytest.fixture(name="service")
def service_(tiny_bundle: Path, tmp_path: Path) -> Iterator[tuple[httpx.Client, Path, Path]]:
    """Yield a service that also has the tiny bundle, its log and its state directory."""
    log, state = tmp_path / "log", tmp_path / "state"
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(state), "CALIBRANT_BUNDLE_DIR": str(tiny_bundle.parent)}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            url = next(line.split()[4] for line in process.stdout if " listens at " in line)
            with httpx.Client(base_url=url, timeout=280) as http:
                yield http, log, state
        finally:
            process.terminate()


def objects_of(http: httpx.Client, body: bytes, model: str, folder: Path) -> nib.Nifti1Image:
    """Segment a zip of a series, write its DICOM objects into a folder and return the mask as NIfTI."""
    headers = {"Prefer": "wait=60"}
    job = http.post(ROUTE, content=body, params={"model": model, "accept": "anyway"}, headers=headers).json()
    while job["state"] in ("queued", "running"):
        job = http.get(job["links"]["self"]).json()
    assert job["state"] == "succeeded", job["problem"]
    answer = http.get(f"{ROUTE}/{job['id']}/dicom.zip", params={"objects": ["seg", "sr", "sc", "bands"]})
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    (folder / "mask.nii.gz").write_bytes(http.get(job["links"]["mask"]).content)
    return nib.Nifti1Image.from_filename(folder / "mask.nii.gz")


def reject_faults(folder: Path) -> None:
    """Let dciodvfy and dsrdump judge the objects of a folder."""
    for kind in ("seg", "sr", "sc", "bands"):
        assert faults_of(folder / f"{kind}.dcm") == [], kind
    subprocess.run(
        [program("dsrdump", "dcmtk"), str(folder / "sr.dcm")], check=True, stdout=subprocess.DEVNULL, timeout=60
    )


def test_a_hippocampus_comes_back_in_its_place(
    hippocampus: Path, service: tuple[httpx.Client, Path, Path], tmp_path: Path
) -> None:
    """A real MR turned by 20 degrees: DICOM's segments are the mask of the shipped model, voxel by voxel in space."""
    http, log, state = service
    scan = nib.Nifti1Image.from_filename(hippocampus / "imagesTr" / "hippocampus_003.nii.gz")
    turned = np.eye(4)
    turned[:3, :3] = nib.eulerangles.euler2mat(0.35, -0.2, 0.1)
    images = series_of_array(np.asarray(scan.dataobj), turned @ scan.affine, Identity("hippocampus"))
    mask = objects_of(http, zip_of_series(images), "hippocampus-mr", tmp_path)

    found = labels_by_place(pydicom.dcmread(tmp_path / "seg.dcm"), mask.affine, mask.shape)
    np.testing.assert_array_equal(found, np.asarray(mask.dataobj))  # the shipped model's labels are 1 and 2
    assert set(np.unique(found)) == {0, 1, 2}
    reject_faults(tmp_path)
    assert pydicom.dcmread(tmp_path / "sr.dcm").PatientName == CANARY_NAME
    _reject_canary(http, log, state)


def test_a_real_ct_comes_back_in_its_place(
    chaos: Path, service: tuple[httpx.Client, Path, Path], tmp_path: Path
) -> None:
    """78 slices of a scanner, as they were stored, through a tiny network; the study and every instance are theirs."""
    http, *_ = service
    images = [pydicom.dcmread(path) for path in sorted(chaos.iterdir())]
    mask = objects_of(http, zip_of_series(images), "tiny", tmp_path)

    made = pydicom.dcmread(tmp_path / "seg.dcm")
    values: npt.NDArray[np.uint8] = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(labels_by_place(made, mask.affine, mask.shape), values)
    assert values.any()
    reject_faults(tmp_path)
    assert made.StudyInstanceUID == images[0].StudyInstanceUID
    instances = {item.ReferencedSOPInstanceUID for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert instances == {image.SOPInstanceUID for image in images}


def _reject_canary(http: httpx.Client, log: Path, state: Path) -> None:
    """Look for the patient where he does not belong: log, figures, job database, refusals."""
    images = series_of_array(np.zeros((8, 8, 4), np.int16), np.eye(4))
    refused = http.post(ROUTE, content=zip_of_series(images)[:-40])
    assert refused.status_code == 422
    texts = [log.read_bytes(), http.get("/metrics").content, refused.content]
    texts += [path.read_bytes() for path in state.glob("jobs.sqlite*")]
    assert len(texts) >= 4
    assert not any(b"CANARY" in text for text in texts)
