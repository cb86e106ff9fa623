"""Shared by the PACS tests: a real Orthanc, a stub server with configurable answers, and a small series."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from orthanc import Orthanc, free_port, is_installed

MOVE_PORT = free_port()
"""Port to which Orthanc sends the images of a C-MOVE."""

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture(scope="session")
def running_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Yield one real Orthanc for all tests; without it tests are skipped, or fail in continuous integration."""
    if not is_installed():
        msg = "Orthanc is absent: apt-get install orthanc orthanc-dicomweb dcmtk"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    orthanc = Orthanc(
        tmp_path_factory.mktemp("orthanc"), DicomModalities={"us": ["CALIBRANT", "127.0.0.1", MOVE_PORT]}
    ).start()
    yield orthanc
    orthanc.kill()


@pytest.fixture
def orthanc(running_orthanc: Orthanc) -> Orthanc:
    """Return the real Orthanc, emptied."""
    running_orthanc.clear()
    return running_orthanc


@pytest.fixture
def series_files(
    tmp_path: Path, slices_of: Callable[..., list[Dataset]], dicom_file: Callable[[Dataset], bytes]
) -> list[Path]:
    """Return the six files of a small oblique CT series, with the canary in its text."""
    folder = tmp_path / "series"
    folder.mkdir()
    paths = [folder / f"{k}.dcm" for k in range(6)]
    for path, image in zip(paths, slices_of(), strict=True):
        path.write_bytes(dicom_file(image))
    return paths


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a self-signed certificate of 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return certificate, key


@dataclass
class Stub:
    """A server with a list of answers, of which the last is repeated."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def says(self, status: int, content: bytes = b"", media_type: str = "application/dicom+json") -> "Stub":
        """Append an answer."""

        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            request.send_header("Content-Type", media_type)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)

        self.answers.append(answer)
        return self

    def does(self, answer: Answer) -> "Stub":
        """Append an answer that is given by a function."""
        self.answers.append(answer)
        return self


@pytest.fixture
def stub() -> Iterator[Stub]:
    """Yield a server in this process."""
    stub = Stub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            stub.asked.append(f"{self.command} {self.path}")
            stub.headers.append(dict(self.headers))
            stub.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
            answer = stub.answers.pop(0) if len(stub.answers) > 1 else stub.answers[0]
            answer(self)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        stub.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield stub
        server.shutdown()
