import os
import stat
from pathlib import Path

import pytest

from service.storage.durable import sync_folder, write_durably


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return the list of what is flushed from now on, in order: the kind and the bytes that the file then held."""
    calls: list[tuple[str, int]] = []
    flush = os.fsync

    def record(descriptor: int) -> None:
        actual = os.fstat(descriptor)
        calls.append(("folder", 0) if stat.S_ISDIR(actual.st_mode) else ("file", actual.st_size))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return calls


def test_the_whole_file_is_flushed_before_its_folder(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    """An entry that survives a power cut never leads to a file whose bytes did not."""
    write_durably(tmp_path / "file", b"12345")

    assert synced == [("file", 5), ("folder", 0)]
    assert (tmp_path / "file").read_bytes() == b"12345"


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    """Nothing of longer content that stood there before remains."""
    write_durably(tmp_path / "file", b"long ago")
    write_durably(tmp_path / "file", b"now")

    assert (tmp_path / "file").read_bytes() == b"now"


def test_a_folder_is_closed_even_if_flushing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails does not cost a file descriptor each time."""

    def fail(_: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(OSError, match="input/output"):
        sync_folder(tmp_path)

    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """Nothing is said to be on the disk when there is nothing."""
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")
