import errno
import os
import shutil
from pathlib import Path

import pytest

from service.errors import StorageFault, StorageFull
from service.storage.local import StateDirectory
from service.storage.room import RESERVE, Room


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """Return a fresh state directory with a reserve of a page."""
    return StateDirectory.open(tmp_path / "state", 4096)


def test_f12_a_directory_that_works_has_no_trouble(state: StateDirectory) -> None:
    """The trial leaves nothing behind."""
    assert Room(state).trouble() is None
    assert [*state.incoming.iterdir()] == []


@pytest.mark.parametrize("gone", ["incoming", "results", "lock", "."])
def test_f12_a_directory_that_was_emptied_is_told(state: StateDirectory, gone: str) -> None:
    """Whatever is missing, or was put there anew."""
    room = Room(state)
    path = (state.root / gone).resolve()
    path.rename(state.root.parent / "elsewhere")
    assert isinstance(room.trouble(), StorageFault)

    path.mkdir()
    found = room.trouble()

    assert isinstance(found, StorageFault)
    if gone == "incoming":
        assert "emptied or replaced" in found.detail
    path.rmdir()
    (state.root.parent / "elsewhere").rename(path)
    assert room.trouble() is None


def test_f12_a_disk_that_fails_is_told(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input/output error while flushing is trouble, and so is a disk that is almost full."""
    room = Room(state)
    usage = shutil.disk_usage(state.root)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        assert isinstance(room.trouble(), StorageFull)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    found = room.trouble()
    assert isinstance(found, StorageFault)
    assert "Input/output error" in found.detail


def test_f7_the_reserve_is_given_up_and_restored(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up only if the disk is almost full, and restored only if there is room."""
    room, reserve = Room(state), state.root / RESERVE
    room.restore_reserve()
    assert reserve.stat().st_size == 4096
    assert reserve.stat().st_blocks * 512 >= 4096
    room.give_up_reserve()
    assert reserve.exists()

    usage = shutil.disk_usage(state.root)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        room.give_up_reserve()
        room.restore_reserve()
        assert not reserve.exists()
    room.restore_reserve()
    assert reserve.exists()
