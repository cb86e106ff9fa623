"""A running service with keys, a secret path and a PACS file, and a client that repeats the calls of 3D Slicer."""

import http.client
import json
import os
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode, urlparse

import numpy as np
import pytest
import requests

from service.storage.keys import add_key

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))

from orthanc import Orthanc, is_installed

SECRET = "s3cret-Path_of-22-letters"  # noqa: S105 - of a test
ORIGIN = "http://viewer.example:3000"


@dataclass(frozen=True)
class Labelling:
    """A running `calibrant serve`, as viewers see it."""

    url: str
    log: Path
    state: Path
    keys: Path
    orthanc: Orthanc | None
    """The configured PACS, not started yet; None if Orthanc is not installed."""

    @property
    def port(self) -> int:
        """Return the port of the service."""
        return int(self.url.rpartition(":")[2])

    def key(self, owner: str) -> str:
        """Return a new key."""
        return add_key(self.keys, owner, admin=False)


@pytest.fixture(scope="session")
def labelling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labelling]:
    """Yield a service with keys, a secret, an allowed origin and a PACS that is not started yet."""
    root = tmp_path_factory.mktemp("labelling")
    log, keys, pacs = root / "log", root / "keys.json", root / "pacs.toml"
    add_key(keys, "nobody", admin=False)
    orthanc = Orthanc(root / "orthanc") if is_installed() else None
    pacs.write_text(f'[pacs.archive]\nurl = "{orthanc.dicomweb}"\n' if orthanc else "")
    environment = os.environ | {
        "CALIBRANT_STATE_DIR": str(root / "state"),
        "CALIBRANT_KEYS_FILE": str(keys),
        "CALIBRANT_MONAILABEL_SECRET": SECRET,
        "CALIBRANT_MONAILABEL_ORIGINS": f"https://other.example, {ORIGIN}",
        "CALIBRANT_PACS_FILE": str(pacs),
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + 240
            while not (lines := [line for line in log.read_text().splitlines() if " listens at " in line]):
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield Labelling(lines[0].split()[4], log, root / "state", keys, orthanc)
        finally:
            process.terminate()


@dataclass
class Slicer:
    """The calls of the MONAI Label extension of 3D Slicer, header by header: http.client, no redirects, raw forms.

    Contract: plugins/slicer/MONAILabel/MONAILabelLib/client.py of Project-MONAI/MONAILabel.
    """

    server_url: str
    headers: dict[str, str] = field(default_factory=dict)
    saved: dict[str, bytes] = field(default_factory=dict)
    """Files saved from the last answer: content by name."""

    def connect(self, password: str) -> bool:
        """Ask whether a token is needed, as before every call, and get one."""
        status, answer = self.method("GET", "/auth/")
        if status != 200 or not json.loads(answer).get("enabled", False):
            return False
        form = urlencode({"username": "somebody", "password": password, "grant_type": "password"})
        status, answer = self.method("POST", "/auth/token", form, "application/x-www-form-urlencoded")
        assert status == 200, answer
        token = json.loads(answer)
        self.headers["Authorization"] = f"{token['token_type']} {token['access_token']}"
        return self.method("GET", "/auth/token/valid")[0] == 200

    def method(self, method: str, selector: str, body: str = "", kind: str = "application/json") -> tuple[int, bytes]:
        """Send a request without files."""
        headers = dict(self.headers)
        if body:
            headers |= {"content-type": kind, "content-length": str(len(body))}
        status, answer, _ = self._send(method, selector, body.encode() or None, headers)
        return status, answer

    def info(self) -> dict[str, Any]:
        """Return the models."""
        status, answer = self.method("GET", "/info/")
        assert status == 200, answer
        return json.loads(answer)

    def create_session(self, path: Path) -> str:
        """Send an image with `requests`, under its base name, and return the id of the session."""
        with path.open("rb") as file:
            answer = requests.put(
                f"{self.server_url}/session/",
                files=[("files", (path.name, file))],
                data={"client_id": "user-xyz"},
                headers=self.headers,
                allow_redirects=False,
                timeout=240,
            )
        assert answer.status_code == 200, answer.text
        return answer.json()["session_id"]

    def has_session(self, session: str) -> bool:
        """Return whether Slicer would continue a session; it shows an error for any status but 200."""
        status, answer = self.method("GET", f"/session/{quote_plus(session)}")
        assert status == 200, answer
        return bool(json.loads(answer))

    def infer(
        self, model: str, image: str, params: dict[str, Any], session: str | None = None, **files: Path
    ) -> tuple[int, dict[str, Any]]:
        """Return status and parameters of an answer, and save its file."""
        selector = f"/infer/{quote_plus(model)}?image={quote_plus(image)}"
        selector += f"&session_id={quote_plus(session)}" if session else ""
        boundary, body = self._form({"params": json.dumps(params | {"client_id": "user-xyz"})}, files)
        headers = {**self.headers, "content-type": boundary, "content-length": str(len(body))}
        status, answer, form = self._send("POST", selector, body, headers)
        self.saved = {name: content for name, content in form.items() if name != "params"}
        return status, json.loads(form["params"] if form else answer)

    @staticmethod
    def _form(fields: dict[str, str], files: dict[str, Path]) -> tuple[str, bytearray]:
        limit = "----------lImIt_of_THE_fIle_eW_$"
        body = bytearray()
        for name, value in fields.items():
            body += f'--{limit}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, path in files.items():  # the file name is the whole local path
            body += f'--{limit}\r\nContent-Disposition: form-data; name="{name}"; filename="{path}"\r\n'.encode()
            body += b"Content-Type: application/octet-stream\r\n\r\n" + path.read_bytes() + b"\r\n"
        return f"multipart/form-data; boundary={limit}", body + f"--{limit}--\r\n\r\n".encode()

    def _send(
        self, method: str, selector: str, body: bytes | bytearray | None, headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, bytes]]:
        parsed = urlparse(self.server_url)
        with closing(http.client.HTTPConnection(parsed.hostname or "", parsed.port)) as connection:
            connection.request(method, f"{parsed.path.rstrip('/')}{selector}", body, headers)
            response = connection.getresponse()
            if "multipart" not in response.getheader("content-type", "") or response.status != 200:
                return response.status, response.read(), {}
            with warnings.catch_warnings(action="ignore"):  # removed in Python 3.13; the extension bundles a copy
                import cgi
            # Bypasses http.client, so that chunk lengths would end up among the voxels.
            found = cgi.FieldStorage(
                fp=response.fp, environ={"REQUEST_METHOD": "POST"}, headers=response.msg, keep_blank_values=True
            )
            services = {part.filename or part.name: part.value for part in found.list or []}
            response.close()
            return (
                response.status,
                b"",
                {name: v if isinstance(v, bytes) else v.encode() for name, v in services.items()},
            )


@pytest.fixture
def slicer(labelling: Labelling) -> Slicer:
    """Return a client that has not connected yet."""
    return Slicer(f"{labelling.url}/monailabel")


@pytest.fixture
def connected(slicer: Slicer, labelling: Labelling) -> Slicer:
    """Return a client with the token of an owner who has sent nothing yet."""
    assert slicer.connect(labelling.key(f"slicer-{secrets.token_hex(4)}"))
    return slicer


@pytest.fixture(scope="session")
def secret() -> str:
    """Return the secret of the running service."""
    return SECRET


@pytest.fixture(scope="session")
def origin() -> str:
    """Return the origin whose pages may read the answers."""
    return ORIGIN


@pytest.fixture
def tiny_scan(nifti: Callable[..., bytes]) -> bytes:
    """Return a small meaningless scan with the canary in its header."""
    return nifti(np.random.default_rng(7).normal(100, 10, (12, 14, 10)).astype(np.float32), np.eye(4))
