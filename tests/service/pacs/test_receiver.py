import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from orthanc import free_port
from pydicom import dcmread
from pynetdicom import AE

from service.pacs.config import Receiver
from service.pacs.dimse import VERIFICATION
from service.pacs.receiver import start_receiver
from service.pacs.spool import Spool

STORESCU = "/usr/bin/storescu"

# pynetdicom raises in the thread of an association if the peer hangs up while it is being rejected; the association ends
# all the same.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Yield the port of a receiver that accepts only SCANNER, and its spool."""
    port, root = free_port(), tmp_path / "received"
    server = start_receiver(Receiver(port=port, allowed=["SCANNER"], least_free_bytes=1), root)
    yield port, root
    server.shutdown()


def send(port: int, *files: Path, calling: str = "SCANNER", called: str = "CALIBRANT") -> int:
    """Send files by DCMTK's storescu and return its exit code."""
    if not Path(STORESCU).is_file():
        msg = "DCMTK is absent: apt-get install dcmtk"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    command = [STORESCU, "-aet", calling, "-aec", called, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.pacs
def test_files_of_an_independent_sender_are_kept(listening: tuple[int, Path], series_files: list[Path]) -> None:
    """Datasets arrive unchanged, and the spool holds only complete files."""
    port, root = listening
    assert send(port, *series_files) == 0
    kept = [dcmread(path) for path in root.glob("*/*")]
    sent = {str(image.SOPInstanceUID): image for image in map(dcmread, series_files)}
    assert len(kept) == 6
    assert all(image == sent[str(image.SOPInstanceUID)] for image in kept)


@pytest.mark.pacs
def test_unlisted_senders_are_rejected(listening: tuple[int, Path], series_files: list[Path]) -> None:
    """Both the calling and the called AE title are checked."""
    port, root = listening
    assert send(port, series_files[0], calling="STRANGER") != 0
    assert send(port, series_files[0], called="OTHER") != 0
    assert list(root.glob("*/*")) == []


@pytest.mark.pacs
def test_a_full_disk_refuses_images(
    listening: tuple[int, Path], series_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 0xA700, so the sender keeps the image and retries."""
    port, root = listening
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert send(port, series_files[0]) != 0
    assert list(root.glob("*/*")) == []


@pytest.mark.pacs
def test_a_failed_write_is_no_success(
    listening: tuple[int, Path], series_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file cannot be written, the sender gets a failure status."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "keep", refuse)
    assert send(listening[0], series_files[0]) != 0


@pytest.mark.pacs
def test_results_are_accepted_and_dropped(listening: tuple[int, Path], series_files: list[Path]) -> None:
    """A router that forwards everything, even our own results, gets success, but nothing is kept."""
    image = dcmread(series_files[0])
    image.Modality = "OT"
    image.save_as(series_files[0])
    assert send(listening[0], series_files[0]) == 0
    assert list(listening[1].glob("*/*")) == []


def test_nonsense_on_the_port_does_no_harm(listening: tuple[int, Path]) -> None:
    """After a PDU that claims 4 GB, noise, an abort and a flood of connections the next caller is served."""
    port, _ = listening
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    crowd[0].sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + b"x" * 1000)
    crowd[1].sendall(os.urandom(500))
    crowd[2].sendall(struct.pack(">BBL4x", 7, 0, 4))
    for connection in crowd:
        connection.close()
    scanner = AE(ae_title="SCANNER")
    scanner.add_requested_context(VERIFICATION)
    deadline = time.monotonic() + 20
    while True:
        association = scanner.associate("127.0.0.1", port, ae_title="CALIBRANT")
        if association.is_established:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert association.send_c_echo().Status == 0
    association.release()


@pytest.mark.pacs
def test_the_command_receives(tmp_path: Path, series_files: list[Path], canary: str) -> None:
    """`calibrant receive` runs in a process of its own, and its output names no patient."""
    port = free_port()
    (tmp_path / "pacs.toml").write_text(f'[receiver]\nport = {port}\nallowed = ["SCANNER"]\nleast_free_bytes = 1\n')
    environment = os.environ | {
        "CALIBRANT_PACS_FILE": str(tmp_path / "pacs.toml"),
        "CALIBRANT_STATE_DIR": str(tmp_path / "state"),
    }
    command = [sys.executable, "-m", "service", "receive"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    ) as process:
        try:
            assert process.stdout is not None
            deadline = time.monotonic() + 60
            while send(port, *series_files) != 0:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.2)
        finally:
            process.kill()
        output = process.stdout.read()
    assert len(list((tmp_path / "state" / "received").glob("*/*.dcm"))) == 6
    assert canary not in output
