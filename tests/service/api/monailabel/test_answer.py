import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi import Response

from service.api.monailabel.answer import Wish, describe, encode_image, form_of
from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED
from service.errors import InvalidRequest
from service.result.files import FRAME, MASK, RESULT, SUMMARY
from service.result.frame import Frame
from service.result.outputs import read_mask
from service.schemas import CaseResult, Job, Links, Statement, Summary

SHAPE = (4, 5, 6)
AFFINE = np.array([[0, 0, -1.5, 70], [-1, 0, 0, 31.5], [0, 2, 0, -12.25], [0, 0, 0, 1]])


@pytest.fixture(name="result")
def result_(tmp_path: Path) -> Path:
    """Return the folder of a result in which only the second structure was found, in three voxels."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2, 3] = mask[2, 2, 3] = mask[3, 2, 4] = 2
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / MASK)
    frame = Frame(
        scan_shape=SHAPE, orientation=[(0, 1), (1, 1), (2, 1)], oriented_shape=SHAPE, network_shape=SHAPE, step=(1, 1, 1),
        affine=AFFINE.tolist(), header="", config=describe_bundle(SHIPPED / "hippocampus-mr").config,
    )  # fmt: skip
    statement = Statement(
        status="holds", text="Text.", reasons=[], dataset="d", split="s", protocol="p", n_persons=1, n_cases=1,
        date="2026-11-23", engine="torch", precision="fp32", figures=None,
    )  # fmt: skip
    summary = Summary(model="m@0", structures=[], foreground_confidence=None, statement=statement, warnings=[])
    case = CaseResult(
        model="m@0", device="cpu", engine="torch", precision="fp32", files={},
        seconds={"decode": 1, "locate": 2, "preprocess": 4, "infer": 8, "calibrate": 16, "encode": 32, "store": 64},
    )  # fmt: skip
    for name, document in ((FRAME, frame), (SUMMARY, summary), (RESULT, case)):
        (tmp_path / name).write_text(document.model_dump_json())
    return tmp_path


def job() -> Job:
    """Return a finished job."""
    links = Links(self="/v1/segmentations/7f", confidence="/v1/segmentations/7f/confidence")
    return Job.model_construct(id="7f", state="succeeded", links=links)  # type: ignore[call-arg]  # only what is read


def test_only_labels_that_were_found_are_named(result: Path) -> None:
    """Only labels in the mask are named, because 3D Slicer assigns the names in order to the values that it finds."""
    params = describe(job(), result)

    assert params["label_names"] == {"posterior hippocampus": 2}
    assert params["centroids"] == {"posterior hippocampus": [2, 2.0, 2.0, 3.33]}


def test_nothing_found_names_nothing(result: Path) -> None:
    """An empty mask has neither names nor centroids, and its answer is still JSON."""
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), result / MASK)

    params = describe(job(), result)

    assert (params["label_names"], params["centroids"]) == ({}, {})
    assert not any(math.isnan(value) for value in params["latencies"].values() if isinstance(value, float))


def test_stages_add_up_to_the_clients_words(result: Path) -> None:
    """Every stage counts in exactly one of MONAI Label's latencies."""
    latencies = describe(job(), result)["latencies"]
    assert latencies == {
        "pre": 7, "infer": 8, "invert": 0, "post": 16, "write": 96, "total": 127, "transform": {}
    }  # fmt: skip


def test_the_trust_stands_beside_the_mask(result: Path) -> None:
    """The parameters hold the summary, and the links to the confidence map and the job."""
    params = describe(job(), result)
    assert params["calibration"] == json.loads((result / SUMMARY).read_text())
    assert (params["job_url"], params["confidence_url"]) == (
        "/v1/segmentations/7f",
        "/v1/segmentations/7f/confidence",
    )


@pytest.mark.parametrize(
    ("wish", "start"),
    [
        ({}, b"NRRD"),
        ({"result_extension": ".nrrd", "result_compress": False, "client_id": "x", "roi": [1]}, b"NRRD"),
        ({"result_extension": ".seg.nrrd"}, b"NRRD"),
        ({"result_extension": ".nii.gz"}, b"\x1f\x8b"),
    ],
)
def test_parameters_that_are_not_ours_change_nothing(result: Path, wish: dict[str, Any], start: bytes) -> None:
    """Unknown parameters are ignored; the default file is .nrrd."""
    assert encode_image(result, Wish.read(json.dumps(wish).encode())).startswith(start)
    assert Wish.read(b"") == Wish()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_raw_voxels_are_those_of_the_mask(result: Path, dtype: str) -> None:
    """An .nrrd holds the mask in the requested type, little-endian, first index fastest, and is reproducible."""
    wish = Wish(result_dtype=dtype, result_compress=False)
    content = encode_image(result, wish)

    header, _, voxels = content.partition(b"\n\n")
    decoded = np.frombuffer(voxels, np.dtype(dtype).newbyteorder("<")).reshape(SHAPE, order="F")
    assert np.array_equal(decoded, read_mask(result))
    assert b"#" not in header
    assert b"\r" not in header
    assert content == encode_image(result, wish)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (b"DOE^JANE", "the whole"),
        (b"[]", "the whole"),
        (b'{"result_extension": "../DOE^JANE"}', "result_extension"),
        (b'{"result_dtype": "float32"}', "result_dtype"),
        (b'{"result_compress": "DOE^JANE"}', "result_compress"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(params: bytes, named: str) -> None:
    """The error names the invalid parameters and repeats no value."""
    with pytest.raises(InvalidRequest, match=rf"\({named}\)") as caught:
        Wish.read(params)
    assert "JANE" not in str(caught.value)


def test_a_form_has_two_parts_that_the_clients_tell_apart() -> None:
    """The form has parameters without and a mask with a file name, a safe boundary, and a length."""
    image = bytes(range(256))
    answer: Response = form_of({"a": 1}, "7f.nrrd", image)

    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    _, params, file, end = bytes(answer.body).split(b"--" + boundary)
    assert params == (
        b'\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n{"a": 1}\r\n'
    )
    assert file == (
        b'\r\nContent-Disposition: form-data; name="image"; filename="7f.nrrd"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + image + b"\r\n"
    )
    assert end == b"--\r\n"
    assert answer.headers["content-length"] == str(len(answer.body))
