"""A patient's name, planted wherever a sender could put it, is found only in the scan that was sent and its DICOM."""

import gzip
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from tests.e2e.test_formats import dicom_slice

NAME = "DOE^JANE^7731"
WAIT = {"Prefer": "wait=50"}
ROUTE = "/v1/segmentations"
EXTENSION = 4
"""Code of a NIfTI header extension that holds text (AFNI's)."""


@dataclass(frozen=True)
class Service:
    """A running `calibrant serve`: what it says, and where it keeps things."""

    http: httpx.Client
    log: Path
    state: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield a service that has been told nothing yet."""
    root = tmp_path_factory.mktemp("privacy")
    state, log = root / "state", root / "log"
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(state)}
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            url = next(line.split()[4] for line in process.stdout if " listens at " in line)
            with httpx.Client(base_url=url, timeout=60, headers={"User-Agent": NAME}, cookies={"seen": "DOE"}) as http:
                yield Service(http, log, state)
        finally:
            process.kill()


@pytest.fixture
def image(hippocampus: Path) -> nib.Nifti1Image:
    """Return a real scan as whole numbers."""
    image = nib.Nifti1Image.from_filename(hippocampus / "imagesTr" / "hippocampus_003.nii.gz")
    return nib.Nifti1Image(np.rint(image.get_fdata()).astype(np.int16), image.affine)


def named_nifti(image: nib.Nifti1Image) -> bytes:
    """Return a scan with the name in every free text of its header, and in an extension."""
    named = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        named.header[field] = NAME.encode()
    named.header.extensions.append(nib.nifti1.Nifti1Extension(EXTENSION, NAME.encode()))
    return gzip.compress(named.to_bytes())


def named_itk(image: nib.Nifti1Image, tmp_path: Path, suffix: str) -> bytes:
    """Return a scan with the name as a field of its header."""
    named = SimpleITK.GetImageFromArray(np.asarray(image.dataobj).T)
    named.SetMetaData("PatientName", NAME)
    path = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(named, path)
    assert NAME.encode() in path.read_bytes()
    return path.read_bytes()


def named_dicom(image: nib.Nifti1Image) -> bytes:
    """Return a zip of a series with the name in its tags, its file names and its comment."""
    archive = io.BytesIO()
    voxels = np.asarray(image.dataobj)
    with zipfile.ZipFile(archive, "w") as files:
        files.comment = NAME.encode()
        for k in range(voxels.shape[2]):
            each = dicom_slice(voxels[..., k], k, np.diag([-1.0, -1.0, 1.0, 1.0]))
            each.PatientName, each.PatientID, each.InstitutionName = NAME, NAME, NAME
            each.StudyDescription = each.SeriesDescription = each.AccessionNumber = NAME
            file = io.BytesIO()
            pydicom.dcmwrite(file, each, enforce_file_format=True)
            files.writestr(f"{NAME}/{k}.dcm", file.getvalue())
    return archive.getvalue()


def texts_of(answer: httpx.Response) -> bytes:
    """Return an answer's headers and its body, unpacked where it is packed."""
    body = answer.content
    if body[:2] == b"\x1f\x8b":
        body = gzip.decompress(body)
    if body[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            # A DICOM object belongs to the patient's study: there the name must be.
            names = archive.namelist()
            members = [archive.read(name) for name in names if not name.endswith(".dcm")]
            body = " ".join(names).encode() + archive.comment
            body += b"".join(gzip.decompress(each) if each[:2] == b"\x1f\x8b" else each for each in members)
    return str(answer.headers).encode() + body


@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd", ".mha", ".zip"])
def test_no_result_holds_the_name_that_the_scan_holds(
    kind: str, service: Service, image: nib.Nifti1Image, tmp_path: Path
) -> None:
    """Job, events, every result in every format and the reference's figures: none repeats a header's text."""
    content = {".nii.gz": lambda: named_nifti(image), ".zip": lambda: named_dicom(image)}.get(
        kind, lambda: named_itk(image, tmp_path, kind)
    )()
    headers = WAIT | {"Idempotency-Key": f"{NAME}{kind}"}
    form = {"scan": (f"{NAME}{kind}", content, "application/octet-stream")}
    job = service.http.post(ROUTE, files=form, headers=headers)
    assert job.json()["state"] == "succeeded", job.text
    here = f"{ROUTE}/{job.json()['id']}"
    mask = service.http.get(f"{here}/mask")
    answers = [
        job,
        mask,
        service.http.post(f"{here}/reference", files={"scan": (f"{NAME}.nii.gz", mask.content)}),
        *(service.http.get(f"{here}{each}") for each in ("", "/events", "/summary", "/confidence", "/bundle.zip")),
        *(service.http.get(f"{here}{each}") for each in ("/mask?format=seg.nrrd", "/probabilities", "/uncertainty")),
    ]

    assert [answer.status_code for answer in answers] == [200] * len(answers)
    for answer in answers:
        assert b"JANE" not in texts_of(answer), answer.request.url


@pytest.mark.parametrize(
    "content", [NAME.encode() * 99, gzip.compress(NAME.encode() * 99), b"NRRD0005\n" + b"DOE^JANE"]
)
def test_no_refusal_repeats_what_was_sent(content: bytes, service: Service) -> None:
    """Bodies, names of files, paths, parameters, hosts, cursors and keys: an error says what is wrong, not what it was."""
    refused = [
        service.http.post(ROUTE, content=content),
        service.http.post(ROUTE, files={"scan": (f"{NAME}.nii", content)}),
        service.http.post(ROUTE, files={NAME: (NAME, content)}),
        service.http.post(ROUTE, content=content, params={"model": NAME}),
        service.http.post(ROUTE, params={"scan": NAME}),
        service.http.post(ROUTE, content=content, params={"priority": NAME, NAME: NAME}),
        service.http.post(ROUTE, content=content, headers={"Content-Type": f"image/{NAME}"}),
        service.http.post(ROUTE, content=content, headers={"Prefer": f"wait={NAME}"}),
        service.http.post("/v1/scans", content=b"", headers={"Content-Disposition": f"filename={NAME}"}),
        service.http.get(f"{ROUTE}/{NAME}"),
        service.http.get(ROUTE, params={"cursor": NAME, "state": NAME}),
        service.http.get(f"/v1/models/{NAME}"),
        service.http.post(f"/v1/models/{NAME}/load"),
        service.http.get(f"/v1/{NAME}?{NAME}={NAME}"),
        service.http.get("/v1/models", headers={"Host": f"{NAME}.example"}),
        service.http.request(NAME.split("^", maxsplit=1)[0], ROUTE),
    ]

    for answer in refused:
        assert 400 <= answer.status_code < 500, answer.request.url
        assert b"JANE" not in texts_of(answer), answer.request.url


def test_nothing_that_was_sent_is_in_the_log_or_beside_the_scan(service: Service) -> None:
    """After all of that the log, the job database and the results know no name; the scans and DICOM's source do."""
    assert service.log.stat().st_size > 0
    assert b"JANE" not in service.log.read_bytes()
    seen = 0
    for path in (
        each for each in service.state.rglob("*") if each.is_file() and service.state / "scans" not in each.parents
    ):
        content = path.read_bytes()
        if path.name == "source.json.gz":  # what DICOM results are made with, erased with the result
            assert NAME.encode() in gzip.decompress(content)
            continue
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        assert b"JANE" not in content, path
        assert "JANE" not in str(path)
        seen += 1
    assert seen > 20
    scans = [scan.read_bytes() for scan in (service.state / "scans").glob("*/*")]
    assert sum(NAME.encode() in scan for scan in scans) == 3  # the fourth is packed
