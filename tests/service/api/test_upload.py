import gzip
import hashlib
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.errors import CalibrantError, ConstantVolume, NonFiniteVoxels

Hostile = tuple[bytes, type[CalibrantError]]
Nifti = Callable[..., bytes]

ROUTE = "/v1/segmentations"
PROBLEM = "application/problem+json"
WAIT = {"Prefer": "wait=50"}
LIMIT = 2_000_000
"""CALIBRANT_MAX_UPLOAD_BYTES of the running service."""


@pytest.fixture(name="stored")
def stored_(server_state: Path) -> Callable[[], set[str]]:
    """Return the function that lists everything that uploads have left in the state directory."""
    return lambda: {path.name for pattern in ("scans/*/*", "incoming/*") for path in server_state.glob(pattern)}


def open_request(url: str, headers: str) -> socket.socket:
    """Send the head of a POST without its body."""
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port or 80), timeout=20)
    connection.sendall(f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    return connection


def status_of(connection: socket.socket) -> bytes:
    """Return the status line of the answer."""
    with connection.makefile("rb") as answer:
        return answer.readline().strip()


def count_jobs(server_state: Path) -> int:
    """Return the number of jobs that have ever been accepted."""
    with closing(sqlite3.connect(server_state / "jobs.sqlite")) as database:
        return int(database.execute("SELECT count(*) FROM workflow_status").fetchone()[0])


def test_a_scan_lies_under_its_hash(
    http: httpx.Client, nifti: Nifti, server_state: Path, stored: Callable[[], set[str]]
) -> None:
    """The body is stored once, byte for byte, under its SHA-256, however often it is sent."""
    content = nifti(cal_max=1)
    before = stored()

    for _ in range(2):
        assert http.post(ROUTE, content=content).status_code == 202

    sha256 = hashlib.sha256(content).hexdigest()
    assert stored() - before == {sha256}
    assert (server_state / "scans" / "local" / sha256).read_bytes() == content


@pytest.mark.parametrize(
    "media_type",
    ["application/octet-stream", "application/gzip", "application/x-www-form-urlencoded", "image/nii", None],
)
def test_the_bytes_decide_what_a_body_is(http: httpx.Client, nifti: Nifti, media_type: str | None) -> None:
    """Any content type is accepted that does not wrap the file, also curl's default and none."""
    headers = {"Content-Type": media_type} if media_type else {}

    assert http.post(ROUTE, content=nifti(), headers=headers).status_code == 202


def test_a_body_may_come_in_chunks_of_any_size(
    http: httpx.Client, nifti: Nifti, stored: Callable[[], set[str]]
) -> None:
    """A chunked body without a length is accepted, also in chunks of one byte."""
    content = gzip.compress(nifti(cal_max=2), mtime=0)

    def pieces() -> Iterator[bytes]:
        for position in range(0, len(content), 7):
            yield content[position : position + 7]

    assert http.post(ROUTE, content=pieces()).status_code == 202
    assert hashlib.sha256(content).hexdigest() in stored()


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "text/plain",
        "TEXT/csv",
    ],
)
def test_a_wrapped_scan_is_415(
    http: httpx.Client, nifti: Nifti, media_type: str, stored: Callable[[], set[str]]
) -> None:
    """JSON or text is refused, and the answer shows a command that works."""
    before = stored()

    answer = http.post(ROUTE, content=nifti(), headers={"Content-Type": media_type})

    assert answer.status_code == 415
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/unsupported-media-type"
    assert "--data-binary @scan.nii.gz" in answer.json()["detail"]
    assert stored() == before


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_a_content_encoding_is_415(http: httpx.Client, nifti: Nifti, encoding: str) -> None:
    """A body with a Content-Encoding other than `identity` is refused."""
    answer = http.post(ROUTE, content=gzip.compress(nifti()), headers={"Content-Encoding": encoding})

    assert answer.status_code == 415
    assert answer.json()["type"] == "/problems/unsupported-media-type"
    assert http.post(ROUTE, content=nifti(), headers={"Content-Encoding": "identity"}).status_code == 202


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_413(
    http: httpx.Client, nifti: Nifti, stored: Callable[[], set[str]]
) -> None:
    """A body at the limit is examined (it is too long for its header); one byte more is refused unread."""
    content, before = nifti().ljust(LIMIT, b"\0"), stored()

    assert http.post(ROUTE, content=content).json()["type"] == "/problems/payload-too-long"
    answer = http.post(ROUTE, content=content + b"\0")

    assert answer.status_code == 413
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/payload-too-large"
    assert answer.json()["detail"].startswith("At most 2000000 bytes are accepted.")
    assert stored() == before


def test_a_body_without_a_length_is_cut_at_the_limit(http: httpx.Client, stored: Callable[[], set[str]]) -> None:
    """A chunked body is counted while it arrives, and removed beyond the limit."""
    before = stored()

    answer = http.post(ROUTE, content=iter([bytes(LIMIT), bytes(1)]))

    assert answer.status_code == 413
    assert answer.json()["type"] == "/problems/payload-too-large"
    assert stored() == before


def test_a_huge_announced_body_is_413_before_it_is_sent(server_url: str, stored: Callable[[], set[str]]) -> None:
    """A Content-Length of 2 GB is refused before a byte of it was sent."""
    before = stored()

    with open_request(server_url, "Content-Length: 2000000000\r\n") as connection:
        assert status_of(connection).startswith(b"HTTP/1.1 413 ")

    assert stored() == before


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: -1\r\n",
        "Content-Length: 1e3\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    ],
    ids=["negative", "no number", "two", "length and chunks"],
)
def test_a_length_that_cannot_be_is_400(server_url: str, headers: str, http: httpx.Client) -> None:
    """For an invalid length, the server answers 400 or closes, and goes on."""
    with open_request(server_url, headers) as connection:
        assert status_of(connection) in (b"HTTP/1.1 400 Bad Request", b"")

    assert http.get("/v2/health/live").status_code == 200


def test_an_interrupted_upload_leaves_nothing(
    server_url: str, nifti: Nifti, http: httpx.Client, server_state: Path, stored: Callable[[], set[str]]
) -> None:
    """A connection that closes during the body leaves neither a job nor a file."""
    content, before, jobs = nifti(cal_max=3), stored(), count_jobs(server_state)

    with open_request(server_url, f"Content-Length: {len(content)}\r\n") as connection:
        connection.sendall(content[:300])
        deadline = time.monotonic() + 20
        while stored() == before:  # the upload has begun
            assert time.monotonic() < deadline
            time.sleep(0.01)

    while stored() != before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert count_jobs(server_state) == jobs
    assert http.get("/v2/health/ready").status_code == 200


def test_every_hostile_file_has_its_problem_document(
    http: httpx.Client, hostile: Hostile, canary: str, server_state: Path
) -> None:
    """Invalid headers, geometry and length are a 422 without traces; invalid intensities fail the job.

    Either way the problem document has the same type, and repeats nothing of the file.
    """
    content, error = hostile
    scans = set(server_state.glob("scans/*/*"))

    answer = http.post(ROUTE, content=content, headers=WAIT)

    problem = answer.json()
    if error in (NonFiniteVoxels, ConstantVolume):
        assert (answer.status_code, problem["state"]) == (200, "failed")
        problem = problem["problem"]
    else:
        assert answer.status_code == 422
        assert answer.headers["content-type"] == PROBLEM
        assert set(server_state.glob("scans/*/*")) == scans
    assert problem["type"] == f"/problems/{error.code}"
    assert problem["title"] == error.title
    assert problem["status"] == 422
    assert canary not in answer.text
    assert [path for path in (server_state / "incoming").iterdir() if path.name != "trial"] == []


def test_the_service_goes_on_after_hostile_files(http: httpx.Client, nifti: Nifti) -> None:
    """After a NaN volume and a truncated file, the same process segments the next scan."""
    assert (
        http.post(ROUTE, content=nifti(np.full((4, 5, 6), np.nan, np.float32)), headers=WAIT).json()["state"]
        == "failed"
    )
    assert http.post(ROUTE, content=nifti()[:400], headers=WAIT).status_code == 422

    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.post(ROUTE, content=nifti(), headers=WAIT).json()["state"] == "succeeded"


def test_a_form_a_body_and_a_scan_id_are_the_same_scan(
    http: httpx.Client, nifti: Nifti, stored: Callable[[], set[str]]
) -> None:
    """Scan id, mask and confidence do not depend on the upload's form, and the file name is not stored."""
    content, before = nifti(cal_max=5), stored()
    by_body = http.post(ROUTE, content=content, headers=WAIT).json()
    by_form = http.post(ROUTE, files={"file": ("Doe^Jane.nii", content)}, headers=WAIT).json()
    by_id = http.post(ROUTE, params={"scan": by_body["scan"]}, headers=WAIT).json()

    assert stored() - before == {hashlib.sha256(content).hexdigest()}
    jobs = by_body, by_form, by_id
    assert {job["scan"] for job in jobs} == {hashlib.sha256(content).hexdigest()}
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert len({job["id"] for job in jobs}) == 3
    for name in ("mask", "confidence"):
        assert len({http.get(job["links"][name]).content for job in jobs}) == 1


def test_the_name_of_a_forms_field_does_not_matter(http: httpx.Client, nifti: Nifti) -> None:
    """The part with a file name is the scan, whatever it is called."""
    content = nifti(cal_max=6)

    answer = http.post(ROUTE, files={"image": ("x", content)})

    assert answer.status_code == 202
    assert answer.json()["scan"] == hashlib.sha256(content).hexdigest()


def test_a_form_of_a_file_of_the_limit_is_read(http: httpx.Client, stored: Callable[[], set[str]]) -> None:
    """The form's overhead does not count: a file at the limit is read, one byte more is a 413."""
    before = stored()

    at_limit = http.post(ROUTE, files={"file": ("x", bytes(LIMIT))})
    beyond = http.post(ROUTE, files={"file": ("x", bytes(LIMIT + 1))})
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    chunked = http.post(ROUTE, content=iter([head, bytes(LIMIT + 1), b"\r\n--b--\r\n"]), headers=headers)

    assert at_limit.json()["type"] == "/problems/unrecognised-format"
    assert [answer.status_code for answer in (beyond, chunked)] == [413, 413]
    assert stored() == before


def test_fields_beside_the_file_are_limited(http: httpx.Client, nifti: Nifti, stored: Callable[[], set[str]]) -> None:
    """Other fields of a form are limited, too."""
    before = stored()

    answer = http.post(ROUTE, files={"file": ("x", nifti())}, data={"note": "x" * (LIMIT + (1 << 16))})

    assert answer.status_code == 413
    assert stored() == before


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", b"--b\r\n", "no boundary"),
        ("multipart/form-data; boundary=b", b"", "cannot be read"),
        ("multipart/form-data; boundary=b", b"no form at all", "cannot be read"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", "0 files"),
        ("multipart/form-data; boundary=" + "b" * 300, b"--b--\r\n", "cannot be read"),
    ],
    ids=["no boundary", "empty", "no form", "no file", "giant boundary"],
)
def test_a_form_that_cannot_be_used_is_422(
    http: httpx.Client, stored: Callable[[], set[str]], content_type: str, body: bytes, words: str
) -> None:
    """The answer names the fault and a command that works, and nothing is stored."""
    before = stored()

    answer = http.post(ROUTE, content=body, headers={"Content-Type": content_type})

    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-request"
    assert words in answer.json()["detail"]
    assert "-F file=@scan.nii.gz" in answer.json()["detail"]
    assert stored() == before


def test_an_empty_file_of_a_form_is_an_empty_file(http: httpx.Client) -> None:
    """A browser sends an empty file if none was chosen."""
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--b--\r\n'

    answer = http.post(ROUTE, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/empty-file")
