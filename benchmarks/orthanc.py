"""Runs a real Orthanc as a child process on free ports, for the tests and for benchmarks/pacs_chain.py."""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import httpx

PROGRAM = "/usr/sbin/Orthanc"
_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
_START_S = 30


def is_installed() -> bool:
    """Return whether the Debian packages orthanc and orthanc-dicomweb are installed."""
    return shutil.which(PROGRAM) is not None and Path(_PLUGIN).is_file()


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Orthanc:
    """One Orthanc in its own folder; it can be killed and started again, and keeps its ports and contents."""

    def __init__(self, folder: Path, **config: Any) -> None:  # noqa: ANN401 - Orthanc's own
        """Write the configuration.

        Args:
            folder: holds its database and its log.
            config: options of Orthanc, which replace the defaults below.
        """
        self.folder = folder
        self.http_port, self.dicom_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "Name": "test",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http_port,
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": "ORTHANC",
            "DicomPort": self.dicom_port,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "UnknownSopClassAccepted": True,
            "StableAge": 1,
            "OverwriteInstances": False,
            "Plugins": [_PLUGIN],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        } | config
        (folder / "orthanc.json").write_text(json.dumps(options, indent=2))

    @property
    def url(self) -> str:
        """Root of its own REST interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        """Root of its DICOMweb."""
        return f"{self.url}/dicom-web"

    def start(self) -> Self:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while True:
            try:
                httpx.get(f"{self.url}/system", timeout=5).raise_for_status()
            except httpx.HTTPError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return self

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def get(self, path: str) -> Any:  # noqa: ANN401 - whatever it answers
        """Return an answer of its REST interface."""
        return httpx.get(f"{self.url}{path}", timeout=30).raise_for_status().json()

    def clear(self) -> None:
        """Delete all its studies."""
        for study in self.get("/studies"):
            httpx.delete(f"{self.url}/studies/{study}", timeout=30)

    def send(self, *files: Path) -> None:
        """Send files with DCMTK's storescu (pynetdicom installs one of the same name with other options)."""
        command = ["/usr/bin/storescu", "-xs", "127.0.0.1", str(self.dicom_port), *map(str, files)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C"})
