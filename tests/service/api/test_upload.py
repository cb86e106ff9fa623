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
    return lambda: {path.name for folder in ("scans", "incoming") for path in (server_state / folder).iterdir()}


def open_request(url: str, headers: str) -> socket.socket:
    """Send the head of a POST and nothing of its body."""
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
    """The accepted body is stored once, byte for byte, under its SHA-256, however often it is sent."""
    content = nifti(cal_max=1)
    before = stored()

    for _ in range(2):
        assert http.post(ROUTE, content=content).status_code == 202

    sha256 = hashlib.sha256(content).hexdigest()
    assert stored() - before == {sha256}
    assert (server_state / "scans" / sha256).read_bytes() == content


@pytest.mark.parametrize(
    "media_type",
    ["application/octet-stream", "application/gzip", "application/x-www-form-urlencoded", "image/nii", None],
)
def test_the_bytes_decide_what_a_body_is(http: httpx.Client, nifti: Nifti, media_type: str | None) -> None:
    """Any content type that does not wrap the file is accepted: that of curl's --data-binary and none at all too."""
    headers = {"Content-Type": media_type} if media_type else {}

    assert http.post(ROUTE, content=nifti(), headers=headers).status_code == 202


def test_a_body_may_come_in_chunks_of_any_size(
    http: httpx.Client, nifti: Nifti, stored: Callable[[], set[str]]
) -> None:
    """A chunked body without a length is put together, chunks of one byte too."""
    content = gzip.compress(nifti(cal_max=2), mtime=0)

    def pieces() -> Iterator[bytes]:
        for position in range(0, len(content), 7):
            yield content[position : position + 7]

    assert http.post(ROUTE, content=pieces()).status_code == 202
    assert hashlib.sha256(content).hexdigest() in stored()


@pytest.mark.parametrize(
    "media_type",
    [
        "multipart/form-data; boundary=x",
        "application/json",
        "Application/JSON; charset=utf-8",
        "text/plain",
        "TEXT/csv",
    ],
)
def test_a_wrapped_scan_is_415(
    http: httpx.Client, nifti: Nifti, media_type: str, stored: Callable[[], set[str]]
) -> None:
    """A form, JSON or text is refused with the command that would work."""
    before = stored()

    answer = http.post(ROUTE, content=nifti(), headers={"Content-Type": media_type})

    assert answer.status_code == 415
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/unsupported-media-type"
    assert "--data-binary @scan.nii.gz" in answer.json()["detail"]
    assert stored() == before


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_a_content_encoding_is_415(http: httpx.Client, nifti: Nifti, encoding: str) -> None:
    """A body that HTTP itself has compressed is refused; `identity` is none."""
    answer = http.post(ROUTE, content=gzip.compress(nifti()), headers={"Content-Encoding": encoding})

    assert answer.status_code == 415
    assert answer.json()["type"] == "/problems/unsupported-media-type"
    assert http.post(ROUTE, content=nifti(), headers={"Content-Encoding": "identity"}).status_code == 202


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_413(
    http: httpx.Client, nifti: Nifti, stored: Callable[[], set[str]]
) -> None:
    """At the limit the file's own fault is found (it is too long); beyond it nothing is looked at."""
    content, before = nifti().ljust(LIMIT, b"\0"), stored()

    assert http.post(ROUTE, content=content).json()["type"] == "/problems/payload-too-long"
    answer = http.post(ROUTE, content=content + b"\0")

    assert answer.status_code == 413
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == "/problems/payload-too-large"
    assert answer.json()["detail"].startswith("At most 2000000 bytes are accepted.")
    assert stored() == before


def test_a_body_without_a_length_is_cut_at_the_limit(http: httpx.Client, stored: Callable[[], set[str]]) -> None:
    """A chunked body is counted while it comes; what had arrived is removed."""
    before = stored()

    answer = http.post(ROUTE, content=iter([bytes(LIMIT), bytes(1)]))

    assert answer.status_code == 413
    assert answer.json()["type"] == "/problems/payload-too-large"
    assert stored() == before


def test_a_huge_announced_body_is_413_before_it_is_sent(server_url: str, stored: Callable[[], set[str]]) -> None:
    """2 GB in Content-Length are answered although not one byte of them has come."""
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
    """The server answers 400 or closes, keeps no request, and goes on."""
    with open_request(server_url, headers) as connection:
        assert status_of(connection) in (b"HTTP/1.1 400 Bad Request", b"")

    assert http.get("/v2/health/live").status_code == 200


def test_an_interrupted_upload_leaves_nothing(
    server_url: str, nifti: Nifti, http: httpx.Client, server_state: Path, stored: Callable[[], set[str]]
) -> None:
    """A connection that closes half-way through the body makes no job and no file."""
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
    """Header, geometry and length are refused with 422 and leave nothing behind; intensities end the job as failed.

    Either way the problem document has the same type, and repeats nothing of the file.
    """
    content, error = hostile
    scans = set((server_state / "scans").iterdir())

    answer = http.post(ROUTE, content=content, headers=WAIT)

    problem = answer.json()
    if error in (NonFiniteVoxels, ConstantVolume):
        assert (answer.status_code, problem["state"]) == (200, "failed")
        problem = problem["problem"]
    else:
        assert answer.status_code == 422
        assert answer.headers["content-type"] == PROBLEM
        assert set((server_state / "scans").iterdir()) == scans
    assert problem["type"] == f"/problems/{error.code}"
    assert problem["title"] == error.title
    assert problem["status"] == 422
    assert canary not in answer.text
    assert list((server_state / "incoming").iterdir()) == []


def test_the_service_goes_on_after_hostile_files(http: httpx.Client, nifti: Nifti) -> None:
    """A scan sent after a NaN volume and a truncated file is segmented by the same, living process."""
    assert (
        http.post(ROUTE, content=nifti(np.full((4, 5, 6), np.nan, np.float32)), headers=WAIT).json()["state"]
        == "failed"
    )
    assert http.post(ROUTE, content=nifti()[:400], headers=WAIT).status_code == 422

    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.post(ROUTE, content=nifti(), headers=WAIT).json()["state"] == "succeeded"
