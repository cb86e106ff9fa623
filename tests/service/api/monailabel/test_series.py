import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from orthanc import Orthanc
from pydicom.dataset import Dataset

from tests.dicom_series import CANARY_NAME, series_of_array
from tests.service.api.monailabel.conftest import Labelling

MODEL = "hippocampus-mr"

# 12 degrees about the first axis and 20 about the third: no edge of the scan is parallel to a patient axis.
_NOD, _TURN = np.radians([12, 20])
TURNED = np.array(
    [[np.cos(_TURN), -np.sin(_TURN), 0, 0], [np.sin(_TURN), np.cos(_TURN), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
) @ np.array([[1, 0, 0, 0], [0, np.cos(_NOD), -np.sin(_NOD), 0], [0, np.sin(_NOD), np.cos(_NOD), 0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def archive(labelling: Labelling) -> Iterator[Orthanc]:
    """Yield the running PACS of the service; without one the tests are skipped, except in CI."""
    if labelling.orthanc is None:
        msg = "Orthanc is absent: apt-get install orthanc orthanc-dicomweb dcmtk"
        if os.environ.get("CI"):
            pytest.fail(msg)
        pytest.skip(msg)
    labelling.orthanc.start()
    yield labelling.orthanc
    labelling.orthanc.kill()


@pytest.fixture(scope="module")
def viewed(labelling: Labelling, archive: Orthanc) -> Labelling:
    """Return the service beside its running PACS."""
    del archive
    return labelling


@pytest.fixture(scope="module")
def series(archive: Orthanc, hippocampus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Return the images of a real scan with its head turned, as a series that was sent to the PACS in random order."""
    folder = tmp_path_factory.mktemp("series")
    image: Any = nib.load(hippocampus / "imagesTr" / "hippocampus_003.nii.gz")
    images = series_of_array(np.asarray(image.dataobj), TURNED @ image.affine)
    for n, image in enumerate(images):
        pydicom.dcmwrite(folder / f"{n}.dcm", image, enforce_file_format=True)
    files = sorted(folder.iterdir())
    archive.send(*(files[n] for n in np.random.default_rng(5).permutation(len(files))))
    return images


class Ohif:
    """The calls of OHIF's MONAI Label extension by axios in a web page: browser forms, no token, an Origin."""

    def __init__(self, server_url: str, origin: str) -> None:
        self.url = httpx.URL(server_url)
        self.http = httpx.Client(timeout=240, headers={"Origin": origin})

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        """Return an answer that a page of the origin may read: new URL(path, server_url), no redirect followed."""
        answer = self.http.request(method, self.url.join(path), **options)
        assert answer.headers["access-control-allow-origin"] == self.http.headers["Origin"]
        return answer

    def infer(self, image: str, params: dict[str, Any], output: str) -> httpx.Response:
        """Run a model for a series."""
        form = {"params": (None, json.dumps({**params, "restore_label_idx": False}))}
        headers = {"Accept": "application/json,multipart/form-data"}
        query = {"image": image, "output": output}
        return self.ask("POST", f"infer/{MODEL}", params=query, files=form, headers=headers)


@pytest.fixture
def ohif(viewed: Labelling, secret: str, origin: str) -> Iterator[Ohif]:
    """Yield a client that uses the secret path, with a trailing slash."""
    client = Ohif(f"{viewed.url}/monailabel/{secret}/", origin)
    yield client
    client.http.close()


def in_cornerstone_order(images: list[Dataset]) -> list[Dataset]:
    """Return a series as a cornerstone volume: sorted by the distance along row x column direction.

    sortImageIdsAndGetSpacing of @cornerstonejs/core: (first - each) . normal, the largest first.
    """
    first = images[0]
    normal = np.cross(*np.array(first.ImageOrientationPatient, float).reshape(2, 3))
    origin = np.array(first.ImagePositionPatient, float)
    return sorted(images, key=lambda image: -(origin - np.array(image.ImagePositionPatient, float)) @ normal)


def voxels_of(nrrd: bytes, dtype: type[np.integer[Any]]) -> np.ndarray:
    """Return what nrrd-js gives OHIF of a file: the numbers after the header, in their order, without geometry."""
    header, _, voxels = nrrd.partition(b"\n\n")
    assert b"encoding: raw" in header.split(b"\n")
    assert f"type: {np.dtype(dtype).name}".encode() in header.split(b"\n")
    return np.frombuffer(voxels, np.dtype(dtype).newbyteorder("<"))


def test_ohif_gets_the_mask_in_the_order_of_its_volume(
    ohif: Ohif, viewed: Labelling, series: list[Dataset], tmp_path: Path
) -> None:
    """The mask for OHIF equals the ordinary one plane by plane, at the places that DICOM gives its pixels.

    The series was sent in random order and is oblique; OHIF writes the voxels into its own volume.
    """
    assert series[0].SeriesInstanceUID
    info = ohif.ask("GET", "info/").json()
    assert list(info["models"][MODEL]["labels"].values()) == [1, 2, 11, 12, 21, 22]

    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    answer = ohif.infer(series[0].SeriesInstanceUID, params, "image")

    assert answer.status_code == 200, answer.text
    columns, rows = series[0].Columns, series[0].Rows
    planes = voxels_of(answer.content, np.uint8).reshape(len(series), rows, columns)
    mask = ordinary_mask(viewed, tmp_path)
    to_index = np.linalg.inv(mask.affine) @ np.diag([-1.0, -1, 1, 1])
    grid = np.array([*itertools.product(range(rows), range(columns))])
    expected = np.asarray(mask.dataobj)
    assert {*np.unique(expected)} == {0, 1, 2}
    for plane, image in zip(planes, in_cornerstone_order(series), strict=True):
        cosines = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        spacing = np.array(image.PixelSpacing, float)  # between rows, between columns
        places = np.array(image.ImagePositionPatient, float) + grid[:, ::-1] * spacing[::-1] @ cosines
        indices = np.rint(places @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        assert np.array_equal(plane.ravel(), expected[tuple(indices.T)])


def ordinary_mask(viewed: Labelling, tmp_path: Path) -> Any:  # noqa: ANN401 - nibabel's own
    """Return the mask of the viewer's newest job from the ordinary interface."""
    headers = {"Authorization": f"Bearer {viewed.key('viewer')}"}
    with httpx.Client(base_url=viewed.url, headers=headers, timeout=240) as http:
        job = http.get("/v1/segmentations").json()["jobs"][0]
        (tmp_path / "mask.nii.gz").write_bytes(http.get(job["links"]["mask"]).content)
    return nib.load(tmp_path / "mask.nii.gz")


def test_an_ohif_that_takes_forms_finds_its_parts(ohif: Ohif, series: list[Dataset]) -> None:
    """Versions of OHIF that decode the whole form as text find the 16-bit file and the centroids in it."""
    params = {"result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": False}
    answer = ohif.infer(series[0].SeriesInstanceUID, params, "all")

    boundary = re.search(r"boundary=([^;]+)", answer.headers["content-type"], re.IGNORECASE)
    assert boundary
    parts = [part for part in answer.content.decode().split(f"--{boundary[1]}") if part.strip()]
    text = next(part for part in parts if "Content-Type: application/json" in part)
    file = next(part for part in parts if "Content-Type: application/octet-stream" in part)
    told = json.loads(text[text.index("{") : text.rindex("}") + 1])
    content = file.split("\r\n\r\n")[1]
    voxels = voxels_of(bytes(map(ord, content[: content.rindex("\r\n")])), np.uint16)
    volume = voxels.reshape(len(series), series[0].Rows, series[0].Columns)
    for value, *index in told["centroids"].values():
        np.testing.assert_allclose(index, np.argwhere(volume == value).mean(axis=0)[::-1], atol=0.01)
    assert {value for value, *_ in told["centroids"].values()} == {1, 2}
    assert told["calibration"]["statement"]["n_persons"] > 0


def test_a_dicom_segmentation_belongs_to_the_series(ohif: Ohif, series: list[Dataset]) -> None:
    """output=dicom_seg answers with a segmentation that refers to the images of the series."""
    answer = ohif.infer(series[0].SeriesInstanceUID, {}, "dicom_seg")

    assert answer.headers["content-type"] == "application/dicom"
    segmentation = pydicom.dcmread(io.BytesIO(answer.content))
    assert (segmentation.Modality, segmentation.StudyInstanceUID) == ("SEG", series[0].StudyInstanceUID)
    referred = {
        reference.ReferencedSOPInstanceUID
        for reference in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred <= {image.SOPInstanceUID for image in series}


@pytest.mark.parametrize("uid", ["", "1.2.3.4", "DOE^JANE", "../studies", "*"])
def test_a_series_that_no_pacs_holds_is_refused(ohif: Ohif, viewed: Labelling, uid: str) -> None:
    """The 404 says where the series was looked for; its identifier is neither repeated nor logged."""
    answer = ohif.infer(uid, {}, "image")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/series-not-found")
    assert "JANE" not in answer.text
    assert "JANE" not in viewed.log.read_text()


def test_a_series_of_results_is_refused(ohif: Ohif, archive: Orthanc, series: list[Dataset]) -> None:
    """A series that this service made is not segmented."""
    answer = ohif.infer(series[0].SeriesInstanceUID, {}, "dicom_seg")
    httpx.post(f"{archive.url}/instances", content=answer.content).raise_for_status()
    ours = pydicom.dcmread(io.BytesIO(answer.content)).SeriesInstanceUID

    assert ohif.infer(ours, {}, "image").json()["type"] == "/problems/unsuitable-series"


def test_nobody_of_the_series_is_in_the_log(viewed: Labelling, series: list[Dataset]) -> None:
    """The log holds neither the patient's name nor a UID."""
    log = viewed.log.read_text()
    for word in (CANARY_NAME, series[0].SeriesInstanceUID, series[0].StudyInstanceUID, series[0].SOPInstanceUID):
        assert word not in log
