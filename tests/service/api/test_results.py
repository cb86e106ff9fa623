import gzip
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import nibabel as nib
import nrrd
import numpy as np
import pytest
import slicerio
from fastapi import APIRouter, FastAPI

from service.api import results
from service.api.deps import OwnerDep, ServicesDep
from service.result.outputs import ResultFile
from service.schemas import CaseResult

Nifti = Callable[..., bytes]

ROUTE = "/v1/segmentations"

STORED = ["mask", "confidence", "summary"]


@pytest.fixture(name="affine", scope="module")
def affine_(oblique: np.ndarray) -> np.ndarray:
    """Return an oblique affine of voxels of 1 mm."""
    turned = oblique / np.linalg.norm(oblique, axis=0)
    turned[:, 3] = [-9, -20, 30, 1]
    return turned


@pytest.fixture(name="job", scope="module")
def job_(http: httpx.Client, nifti: Nifti, affine: np.ndarray) -> dict[str, Any]:
    """Return a finished job over an oblique scan of 12 x 14 x 10 voxels."""
    array = np.random.default_rng(3).normal(100, 10, (12, 14, 10)).astype(np.float32)
    job: dict[str, Any] = http.post(ROUTE, content=nifti(array, affine), headers={"Prefer": "wait=50"}).json()
    assert job["state"] == "succeeded"
    return job


@pytest.fixture(name="folder")
def folder_(job: dict[str, Any], server_state: Path) -> Path:
    """Return the folder of the job's result."""
    return server_state / "results" / str(job["id"])


def image(content: bytes) -> Any:  # noqa: ANN401 - nibabel's own
    """Return the image of a .nii.gz."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


@pytest.mark.parametrize("name", STORED)
def test_the_etag_of_a_stored_file_is_its_sha256(http: httpx.Client, job: dict[str, Any], name: str) -> None:
    """The ETag is the SHA-256 of the bytes that are sent."""
    answer = http.get(job["links"][name])

    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'


@pytest.mark.parametrize("path", ["mask", "confidence", "summary", "probabilities", "uncertainty", "bundle.zip"])
def test_who_has_the_file_is_told_so(http: httpx.Client, job: dict[str, Any], path: str) -> None:
    """HEAD returns the ETag; If-None-Match with it, also weak or in a list, gives 304, another one the file."""
    link = f"{ROUTE}/{job['id']}/{path}"
    head = http.head(link)
    etag = head.headers["etag"]
    assert (head.status_code, head.content) == (200, b"")

    for known in (etag, f'"other", W/{etag}', "*"):
        answer = http.get(link, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    answer = http.get(link, headers={"If-None-Match": '"other"'})
    assert (answer.status_code, answer.headers["etag"]) == (200, etag)
    assert answer.headers["content-type"] == head.headers["content-type"]


@pytest.mark.parametrize("path", ["mask", "uncertainty?dtype=uint8", "mask?format=seg.nrrd"])
def test_a_range_is_a_part_of_the_file(http: httpx.Client, job: dict[str, Any], path: str) -> None:
    """An interrupted download can be resumed, also of a file that is computed again."""
    link = f"{ROUTE}/{job['id']}/{path}"
    whole = http.get(link)

    part = http.get(link, headers={"Range": "bytes=10-", "If-Range": whole.headers["etag"]})
    assert part.status_code == 206
    assert part.content == whole.content[10:]
    assert part.headers["content-range"] == f"bytes 10-{len(whole.content) - 1}/{len(whole.content)}"

    beyond = http.get(link, headers={"Range": f"bytes={len(whole.content)}-"})
    assert beyond.status_code == 416
    other = http.get(link, headers={"Range": "bytes=10-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, whole.content)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, b"\x1f\x8b"),
        ({"headers": {"Accept": "application/vnd.unknown.nrrd"}}, b"NRRD"),
        ({"params": {"format": "seg.nrrd"}}, b"NRRD"),
        ({"params": {"format": "nii.gz"}, "headers": {"Accept": "application/vnd.unknown.nrrd"}}, b"\x1f\x8b"),
        ({"headers": {"Accept": "text/html, application/*;q=0.8"}}, b"\x1f\x8b"),
    ],
    ids=["neither", "Accept", "format", "format goes first", "a browser"],
)
def test_the_mask_comes_in_the_format_that_is_wanted(
    http: httpx.Client, job: dict[str, Any], options: dict[str, Any], start: bytes
) -> None:
    """NIfTI is the default, .seg.nrrd on request; Vary says that Accept decides."""
    answer = http.get(job["links"]["mask"], **options)

    assert answer.content.startswith(start)
    assert answer.headers["vary"] == "Accept"


def test_a_format_that_does_not_exist_is_406_or_422(http: httpx.Client, job: dict[str, Any]) -> None:
    """An unacceptable Accept is a 406, an unknown ?format= a 422."""
    answer = http.get(job["links"]["mask"], headers={"Accept": "application/dicom"})
    assert (answer.status_code, answer.json()["type"]) == (406, "/problems/not-acceptable")
    assert "application/gzip" in answer.json()["detail"]

    answer = http.get(job["links"]["mask"], params={"format": "stl"})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")


def test_the_seg_nrrd_holds_the_mask_in_its_place(
    http: httpx.Client, job: dict[str, Any], affine: np.ndarray, tmp_path: Path
) -> None:
    """Voxels, names and the oblique affine (in LPS there) are those of the NIfTI."""
    mask = image(http.get(job["links"]["mask"]).content)
    path = tmp_path / "mask.seg.nrrd"
    path.write_bytes(http.get(job["links"]["mask"], params={"format": "seg.nrrd"}).content)

    segmentation = slicerio.read_segmentation(str(path))

    assert np.array_equal(segmentation["voxels"], np.asarray(mask.dataobj))
    assert np.array_equal(segmentation["ijkToLPS"], np.diag([-1.0, -1, 1, 1]) @ mask.affine)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    assert [name.removeprefix("WITHDRAWN: ") for name in slicerio.segment_names(segmentation)] == [
        "anterior hippocampus",
        "posterior hippocampus",
    ]
    assert nrrd.read_header(str(path))["Segment0_LabelValue"] == "1"


def test_the_mgz_holds_the_mask_in_its_place(http: httpx.Client, job: dict[str, Any]) -> None:
    """Voxels and affine are those of the NIfTI, whether the format is asked for by name or by Accept."""
    mask = image(http.get(job["links"]["mask"]).content)
    answer = http.get(job["links"]["mask"], params={"format": "mgz"})
    again = http.get(job["links"]["mask"], headers={"Accept": answer.headers["content-type"]})

    found = nib.freesurfer.mghformat.MGHImage.from_bytes(gzip.decompress(answer.content))

    assert again.content == answer.content
    assert 'filename="mask.mgz"' in answer.headers["content-disposition"]
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(mask.dataobj))
    np.testing.assert_allclose(found.affine, mask.affine, atol=1e-4)


def test_maps_agree_with_one_another(http: httpx.Client, job: dict[str, Any]) -> None:
    """The largest probability is the confidence, its class is the mask, and the entropy follows from all of them."""
    probabilities = image(http.get(job["links"]["probabilities"]).content)
    uncertainty = image(http.get(job["links"]["uncertainty"]).content).get_fdata()
    confidence = image(http.get(job["links"]["confidence"], params={"dtype": "float32"}).content).get_fdata()
    mask = np.asarray(image(http.get(job["links"]["mask"]).content).dataobj)
    p = probabilities.get_fdata()

    assert probabilities.shape == (12, 14, 10, 3)
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-6)
    assert np.array_equal(p.argmax(axis=-1), mask)
    assert np.array_equal(p.max(axis=-1), confidence)
    np.testing.assert_allclose(uncertainty, -(p * np.log(np.maximum(p, 1e-38))).sum(axis=-1) / np.log(3), atol=1e-5)


@pytest.mark.parametrize(("voxel_type", "step"), [("uint8", 1 / 255), ("uint16", 1 / 65535)])
@pytest.mark.parametrize("name", ["confidence", "uncertainty", "probabilities"])
def test_maps_come_in_the_type_that_is_wanted(
    http: httpx.Client, job: dict[str, Any], name: str, voxel_type: str, step: float
) -> None:
    """Integers with a slope differ from the floats by at most one step."""
    whole = image(http.get(job["links"][name], params={"dtype": "float32"}).content)
    quantised = image(http.get(job["links"][name], params={"dtype": voxel_type}).content)

    assert (whole.get_data_dtype(), quantised.get_data_dtype()) == (np.float32, np.dtype(voxel_type))
    np.testing.assert_allclose(quantised.get_fdata(), whole.get_fdata(), rtol=0, atol=step)


def test_the_zip_holds_what_the_routes_give(http: httpx.Client, job: dict[str, Any]) -> None:
    """The zip holds mask and confidence byte for byte, under BIDS names."""
    answer = http.get(job["links"]["bundle"])
    stem = f"sub-{job['id']}/anat/sub-{job['id']}_space-orig_seg-hippocampusmr"

    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read(f"{stem}_dseg.nii.gz") == http.get(job["links"]["mask"]).content
        assert archive.read(f"{stem}_desc-confidence_probseg.nii.gz") == http.get(job["links"]["confidence"]).content
        assert json.loads(archive.read(f"sub-{job['id']}/sub-{job['id']}_summary.json"))["model"] == job["model"]
    assert answer.content == http.get(job["links"]["bundle"]).content


def test_nothing_of_an_answer_stays_behind(http: httpx.Client, job: dict[str, Any], server_state: Path) -> None:
    """Scratch files are erased with their answer."""
    http.get(job["links"]["probabilities"])
    with http.stream("GET", job["links"]["bundle"]):
        pass  # the caller disconnects

    deadline = time.monotonic() + 60
    while left := list((server_state / "incoming").iterdir()):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_without_logits_the_maps_are_gone(http: httpx.Client, job: dict[str, Any], folder: Path) -> None:
    """Without logits, everything that needs them is a 410 and not linked; the stored files remain."""
    logits = folder / "logits.npy.gz"
    content = logits.read_bytes()
    logits.unlink()
    try:
        for path in ("probabilities", "uncertainty", "confidence?dtype=float32"):
            answer = http.get(f"{ROUTE}/{job['id']}/{path}")
            assert (answer.status_code, answer.json()["type"]) == (410, "/problems/result-expired")
        answer = http.post(f"{ROUTE}/{job['id']}/reference", content=b"x")
        assert (answer.status_code, answer.json()["type"]) == (410, "/problems/result-expired")
        links = http.get(job["links"]["self"]).json()["links"]
        assert {name for name, link in links.items() if link} == {"self", "mask", "confidence", "summary", "bundle"}
        assert http.get(job["links"]["confidence"]).status_code == 200
    finally:
        logits.write_bytes(content)


def test_the_summary_says_what_the_mask_shows(http: httpx.Client, job: dict[str, Any]) -> None:
    """Histogram and truncation follow from mask and maps; a withdrawn statement marks every structure."""
    summary = http.get(job["links"]["summary"]).json()
    mask = np.asarray(image(http.get(job["links"]["mask"]).content).dataobj)

    for structure in summary["structures"]:
        inside = mask == structure["label"]
        edge = tuple(slice(k, -k) for k in (max(1, min(3, n // 10)) for n in mask.shape))  # 2 mm of 1 mm voxels
        at_border = inside.sum() > inside[edge].sum()
        assert sum(structure["confidence_histogram"]) == inside.sum()
        assert (structure["truncated"], structure["volume_ml"] is None) == (at_border, at_border)
        assert structure["withdrawn"] == (summary["statement"]["status"] == "withdrawn")
    assert "expected_accuracy" not in summary


def test_a_file_that_is_only_stored_is_served_under_its_name(
    ask: Callable[..., httpx.Response], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line in the table of outputs adds GET and HEAD of the file, with its SHA-256 as ETag."""
    content = b"a picture"
    case = CaseResult(
        model="m@0", device="cpu", engine="torch", precision="fp32", seconds={},
        files={"ink.png": hashlib.sha256(content).hexdigest()},
    )  # fmt: skip
    (tmp_path / "ink.png").write_bytes(content)
    (tmp_path / "result.json").write_text(case.model_dump_json())
    monkeypatch.setattr(results, "router", APIRouter(prefix="/v1/segmentations/{job_id}"))
    monkeypatch.setattr(results, "result_of", lambda *_: tmp_path)

    results.serve_stored(ResultFile("ink.png", lambda _case: content, description="Return the ink."), "image/png")
    app = FastAPI()
    app.include_router(results.router)
    for dependency in (ServicesDep, OwnerDep):
        app.dependency_overrides[get_args(dependency)[1].dependency] = lambda: None
    answer = ask(app, "GET", "/v1/segmentations/7f/ink.png")
    head = ask(app, "HEAD", "/v1/segmentations/7f/ink.png")

    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, content, "image/png")
    assert answer.headers["etag"] == head.headers["etag"] == f'"{case.files["ink.png"]}"'
    described = app.openapi()["paths"]["/v1/segmentations/{job_id}/ink.png"]["get"]
    assert (described["operationId"], described["description"]) == ("getInkPng", "Return the ink.")
