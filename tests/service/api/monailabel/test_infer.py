import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from service.commands.predict import predict_here
from tests.service.api.monailabel.conftest import Labelling, Slicer

MODEL = "hippocampus-mr"
PARAMS = {"result_extension": ".nrrd", "result_dtype": "uint8"}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a harmless meaningless scan under a name that must not leak."""
    path = tmp_path_factory.mktemp("scans") / "DOE^JANE^7731.nii"
    array = np.random.default_rng(3).normal(100, 10, (12, 14, 10)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def test_slicer_gets_the_mask_of_predict(connected: Slicer, hippocampus: Path, tmp_path: Path) -> None:
    """The whole path of the extension gives the mask of `calibrant predict` for a real scan, voxel for voxel.

    The calls are auth, info, session and infer; SimpleITK opens the saved file, as in the extension.
    """
    path = hippocampus / "imagesTr" / "hippocampus_003.nii.gz"
    files = predict_here(path, tmp_path / "predict", None)
    expected = SimpleITK.ReadImage(files.mask)
    model = connected.info()["models"][MODEL]
    session = connected.create_session(path)
    assert connected.has_session(session)

    status, params = connected.infer(MODEL, "DOE^JANE^7731", PARAMS, session)

    assert status == 200
    ((name, content),) = connected.saved.items()
    saved = tmp_path / name
    saved.write_bytes(content)
    image = SimpleITK.ReadImage(saved)
    assert saved.suffix == ".nrrd"
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(expected))
    assert image.GetSize() == expected.GetSize()
    for mine, its in (
        (image.GetOrigin(), expected.GetOrigin()),
        (image.GetSpacing(), expected.GetSpacing()),
        (image.GetDirection(), expected.GetDirection()),
    ):
        np.testing.assert_allclose(mine, its, atol=1e-6)
    summary = json.loads(files.summary.read_text())
    names = {"anterior hippocampus": 1, "posterior hippocampus": 2}
    mark = "WITHDRAWN: " if summary["statement"]["status"] == "withdrawn" else ""  # as of a drawn scan
    assert params["label_names"] == {f"{mark}{name}": value for name, value in names.items()}
    assert names.items() <= model["labels"].items()
    assert params["calibration"] == summary
    for label in (1, 2):
        statistics = SimpleITK.LabelShapeStatisticsImageFilter()
        statistics.Execute(image)
        value, *index = next(centroid for centroid in params["centroids"].values() if centroid[0] == label)
        place = image.TransformContinuousIndexToPhysicalPoint(index)
        np.testing.assert_allclose(place, statistics.GetCentroid(label), atol=0.01)
        assert value == label


def test_the_links_of_an_answer_lead_to_the_confidence_of_this_scan(
    connected: Slicer, labelling: Labelling, scan: Path
) -> None:
    """The client's key opens the linked job and its confidence map."""
    status, params = connected.infer(MODEL, "", PARAMS, file=scan)
    assert status == 200

    with httpx.Client(base_url=labelling.url, headers=connected.headers) as http:
        job = http.get(params["job_url"]).json()
        confidence = http.get(params["confidence_url"])

    assert (job["state"], job["links"]["confidence"]) == ("succeeded", params["confidence_url"])
    assert params["latencies"]["total"] == pytest.approx(sum(job["seconds"].values()), abs=0.001)
    assert sum(params["latencies"][name] for name in ("pre", "infer", "post", "write")) == pytest.approx(
        params["latencies"]["total"], abs=0.005
    )
    assert confidence.headers["content-type"] == "application/gzip"


def test_a_session_that_is_gone_is_sent_again(connected: Slicer, scan: Path) -> None:
    """If its session is gone, Slicer uploads the scan again and goes on."""
    first = connected.create_session(scan)
    assert connected.method("DELETE", f"/session/{first}")[0] == 200
    assert connected.infer(MODEL, "", PARAMS, first)[0] == 404
    assert not connected.has_session(first)

    again = connected.create_session(scan)

    assert connected.has_session(again)
    assert connected.infer(MODEL, "", PARAMS, again)[0] == 200


def exchange(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Return head and body of the answer over a plain connection that the service closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=240) as connection:
        connection.sendall(request)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return head.lower(), body


def asked(method: str, path: str, key: str, content: bytes = b"", kind: str = "application/json") -> bytes:
    """Return a request as it is sent; it accepts compressed and chunked answers."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Accept-Encoding: gzip, deflate, br",
        "TE: chunked, trailers",
        f"Authorization: Bearer {key}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


ROUTES = [
    *(("GET", path) for path in ("auth", "auth/token/valid", "info", "datastore", "train", "batch/infer", "logs")),
    *(("POST", path) for path in ("activelearning/random", "train/segmentation", "auth/token", "infer/no-model")),
    *(("GET", "session/0"), ("DELETE", "session/0"), ("PUT", "session"), ("PUT", "datastore")),
]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_answer_has_its_length_and_no_redirect(labelling: Labelling, method: str, path: str, slash: str) -> None:
    """Every answer, with or without a trailing slash, has a length and is neither redirected, chunked nor compressed."""
    head, body = exchange(labelling.port, asked(method, f"/monailabel/{path}{slash}", labelling.key("raw")))

    status, *headers = head.split(b"\r\n")
    assert int(status.split()[1]) in {200, 404, 415, 422}
    assert f"content-length: {len(body)}".encode() in headers
    assert b"transfer-encoding" not in head
    assert b"content-encoding" not in head
    assert b"location" not in head


@pytest.mark.parametrize("output", ["", "&output=all", "&output=image", "&output=json"])
def test_a_result_is_sent_whole(labelling: Labelling, scan: Path, output: str) -> None:
    """A mask of raw voxels ends at its announced length, after the last boundary."""
    key = labelling.key("raw")
    form = b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"result_compress": false}\r\n'
    form += b'--b\r\nContent-Disposition: form-data; name="file"; filename="/a/b.nii"\r\n\r\n' + scan.read_bytes()
    form += b"\r\n--b--\r\n"
    path = f"/monailabel/infer/{MODEL}?image=x{output}"

    head, body = exchange(labelling.port, asked("POST", path, key, form, "multipart/form-data; boundary=b"))

    assert head.startswith(b"http/1.1 200")
    assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-encoding" not in head
    if output == "&output=json":
        assert b"content-type: application/json" in head
        assert json.loads(body)["calibration"]["research_use_only"]
    elif output == "&output=image":
        assert b'content-disposition: attachment; filename="' in head
        assert len(body.partition(b"\n\n")[2]) == 12 * 14 * 10
    else:
        boundary = head.partition(b"boundary=")[2].partition(b"\r\n")[0]
        assert body.endswith(b"\r\n--" + boundary + b"--\r\n")
        assert len(body.rpartition(b"\n\n")[2].removesuffix(b"\r\n--" + boundary + b"--\r\n")) == 12 * 14 * 10


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (("no-model", PARAMS, {}), "404 model-not-found"),
        ((MODEL, PARAMS, {"session": "0" * 64}), "404 scan-not-found"),
        ((MODEL, PARAMS, {"file": "constant"}), "422 constant-volume"),
        ((MODEL, PARAMS, {"file": "text"}), "422 unrecognised-format"),
        ((MODEL, PARAMS, {"label": "text"}), "422 invalid-request"),
        ((MODEL, {"result_extension": ".exe"}, {"file": "scan"}), "422 invalid-request"),
    ],
    ids=["model", "session", "constant", "text", "label", "extension"],
)
def test_what_cannot_be_done_is_a_problem_document(
    connected: Slicer, scan: Path, tmp_path: Path, sent: tuple[str, dict[str, Any], dict[str, str]], problem: str
) -> None:
    """A failed job and a refused request answer with the reason, which 3D Slicer shows."""
    model, params, options = sent
    constant, text = tmp_path / "DOE^JANE.nii", tmp_path / "DOE^JANE.txt"
    nib.save(nib.Nifti1Image(np.full((12, 14, 10), 7, np.int16), np.eye(4)), constant)
    text.write_text("DOE^JANE " * 99)
    paths = {"constant": constant, "text": text, "scan": scan}
    files = {name: paths[value] for name, value in options.items() if name != "session"}

    status, answer = connected.infer(model, "DOE^JANE^7731", params, options.get("session"), **files)

    assert f"{status} {answer['type']}" == problem.replace(" ", " /problems/")
    assert "JANE" not in json.dumps(answer)


def test_names_of_files_and_images_are_in_no_log(
    connected: Slicer, labelling: Labelling, scan: Path, secret: str
) -> None:
    """Names that clients send (full paths, patients) and the secret are neither logged nor stored."""
    session = connected.create_session(scan)
    assert connected.infer(MODEL, "DOE^JANE^7731", PARAMS, session)[0] == 200
    assert httpx.get(f"{labelling.url}/monailabel/{secret}/info/").status_code == 200

    log = labelling.log.read_text()
    assert '"route": "/monailabel/infer/{model}"' in log
    assert '"route": "/monailabel/info"' in log
    for word in ("JANE", secret):
        assert word not in log
    for path in labelling.state.rglob("*"):
        assert "JANE" not in path.name


@pytest.mark.parametrize("extension", [".nii.gz", ".seg.nrrd"])
def test_other_files_hold_the_same_mask(connected: Slicer, scan: Path, tmp_path: Path, extension: str) -> None:
    """NIfTI and .seg.nrrd hold the same voxels in the same place."""
    session = connected.create_session(scan)
    images = {}
    for suffix in (".nrrd", extension):
        status, _ = connected.infer(MODEL, "", {"result_extension": suffix}, session)
        ((name, content),) = connected.saved.items()
        assert (status, name.partition(".")[2]) == (200, suffix.removeprefix("."))
        (tmp_path / name).write_bytes(content)
        images[suffix] = SimpleITK.ReadImage(tmp_path / name)

    first, second = images.values()
    assert np.array_equal(SimpleITK.GetArrayFromImage(first), SimpleITK.GetArrayFromImage(second))
    np.testing.assert_allclose(first.GetOrigin(), second.GetOrigin(), atol=1e-6)


def test_who_has_gone_leaves_a_job_that_goes_on(labelling: Labelling, scan: Path) -> None:
    """The job of a client that disconnected ends like any other."""
    key = labelling.key("gone")
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        + scan.read_bytes()
        + b"\r\n--b--\r\n"
    )
    request = asked("POST", f"/monailabel/infer/{MODEL}", key, form, "multipart/form-data; boundary=b")
    with httpx.Client(base_url=labelling.url, headers={"Authorization": f"Bearer {key}"}) as http:
        with socket.create_connection(("127.0.0.1", labelling.port)) as connection:
            connection.sendall(request)
            until(lambda: bool(http.get("/v1/segmentations").json()["jobs"]))
        until(lambda: http.get("/v1/segmentations").json()["jobs"][0]["state"] == "succeeded")


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for a minute at most."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
