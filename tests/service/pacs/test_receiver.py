import os
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

from service.pacs import receiver as module
from service.pacs.config import Receiver
from service.pacs.dimse import VERIFICATION
from service.pacs.receiver import start_receiver
from service.pacs.spool import Spool

STORESCU = "/usr/bin/storescu"

# A peer that hangs up while it is being rejected: pynetdicom's state machine has no such event and raises in the thread of
# this association, which ends all the same.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Yield the port of a receiver that takes from SCANNER alone, and its spool."""
    port, root = free_port(), tmp_path / "received"
    server = start_receiver(Receiver(port=port, allowed=["SCANNER"], least_free_bytes=1), root)
    yield port, root
    server.shutdown()


def send(port: int, *files: Path, calling: str = "SCANNER", called: str = "CALIBRANT") -> int:
    """Send by DCMTK and return its exit code."""
    if not Path(STORESCU).is_file():
        msg = "DCMTK is absent: apt-get install dcmtk"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    command = [STORESCU, "-aet", calling, "-aec", called, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.pacs
def test_what_an_independent_sender_sends_is_kept(listening: tuple[int, Path], series_files: list[Path]) -> None:
    """The dataset arrives as it was sent, and nothing but whole files lies there."""
    port, root = listening
    assert send(port, *series_files) == 0
    kept = [dcmread(path) for path in root.glob("*/*")]
    sent = {str(image.SOPInstanceUID): image for image in map(dcmread, series_files)}
    assert len(kept) == 6
    assert all(image == sent[str(image.SOPInstanceUID)] for image in kept)


@pytest.mark.pacs
def test_who_is_not_on_the_list_is_rejected(listening: tuple[int, Path], series_files: list[Path]) -> None:
    """By its own AE title, and by the one that it calls."""
    port, root = listening
    assert send(port, series_files[0], calling="STRANGER") != 0
    assert send(port, series_files[0], called="OTHER") != 0
    assert list(root.glob("*/*")) == []


@pytest.mark.pacs
def test_a_full_disk_is_told(
    listening: tuple[int, Path], series_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0xA700: the sender keeps the image and tries again later."""
    port, root = listening
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert send(port, series_files[0]) != 0
    assert list(root.glob("*/*")) == []


@pytest.mark.pacs
def test_success_is_said_only_of_what_is_on_the_disk(
    listening: tuple[int, Path], series_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses is no success."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "keep", refuse)
    assert send(listening[0], series_files[0]) != 0


@pytest.mark.pacs
def test_results_are_taken_and_left(listening: tuple[int, Path], series_files: list[Path]) -> None:
    """A router that sends everything, our own results too, is not blocked; nothing is made of them."""
    image = dcmread(series_files[0])
    image.Modality = "OT"
    image.save_as(series_files[0])
    assert send(listening[0], series_files[0]) == 0
    assert list(listening[1].glob("*/*")) == []


def test_nonsense_on_the_port_harms_nobody(listening: tuple[int, Path]) -> None:
    """A PDU that claims 4 GB, noise, an abort in the middle and a flood of connections: the next caller is served."""
    port, _ = listening
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    crowd[0].sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + b"x" * 1000)
    crowd[1].sendall(os.urandom(500))
    crowd[2].sendall(struct.pack(">BBL4x", 7, 0, 4))
    for each in crowd:
        each.close()
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
    """`calibrant receive` in a process of its own; what it says names nobody."""
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
        said = process.stdout.read()
    assert len(list((tmp_path / "state" / "received").glob("*/*.dcm"))) == 6
    assert canary not in said
