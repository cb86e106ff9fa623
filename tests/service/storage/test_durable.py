import os
import stat
from pathlib import Path

import pytest

from service.storage.durable import sync_folder, write_durably


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return the list of all flushes from now on: file or folder, and the file's size at that time."""
    calls: list[tuple[str, int]] = []
    flush = os.fsync

    def record(descriptor: int) -> None:
        status = os.fstat(descriptor)
        calls.append(("folder", 0) if stat.S_ISDIR(status.st_mode) else ("file", status.st_size))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return calls


def test_the_whole_file_is_flushed_before_its_folder(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    """After a power cut a folder entry never refers to a file without its bytes."""
    write_durably(tmp_path / "file", b"12345")

    assert synced == [("file", 5), ("folder", 0)]
    assert (tmp_path / "file").read_bytes() == b"12345"


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    """No bytes of longer previous content remain."""
    write_durably(tmp_path / "file", b"long ago")
    write_durably(tmp_path / "file", b"now")

    assert (tmp_path / "file").read_bytes() == b"now"


def test_a_folder_is_closed_even_if_flushing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk does not leak file descriptors."""

    def fail(_: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(OSError, match="input/output"):
        sync_folder(tmp_path)

    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A missing folder raises FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")
