import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.storage.local import StateDirectory, Upload
from service.storage.private import keep_private


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """Begin with a umask that lets others read, and restore what was there."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(root: Path) -> list[Path]:
    """Return what others than the user can reach."""
    return [path for path in (root, *root.rglob("*")) if stat.S_IMODE(path.lstat().st_mode) & 0o077]


def test_f8_nobody_else_reads_the_state(tmp_path: Path) -> None:
    """Whatever the umask, folders get 0700 and files 0600."""
    state = StateDirectory.open(tmp_path / "state")
    with Upload(state, "local") as upload:
        upload.write(b"scan")
        upload.flush()
        upload.keep()
    assert state.identity

    assert open_to_others(state.root) == []
    assert stat.S_IMODE(state.scans.stat().st_mode) == 0o700
    assert stat.S_IMODE((state.root / "identity").stat().st_mode) == 0o600


def test_f8_what_an_earlier_version_left_open_is_closed(tmp_path: Path) -> None:
    """Everything in the directory is tightened at the start; what a link points to is not."""
    root, outside = tmp_path / "state", tmp_path / "outside"
    (root / "results" / "job").mkdir(parents=True)
    (root / "results" / "job" / "mask.nii.gz").write_bytes(b"mask")
    outside.write_bytes(b"")
    (root / "link").symlink_to(outside)
    assert len(open_to_others(root)) == 5

    StateDirectory.open(root)

    assert [path.name for path in open_to_others(root)] == ["link"]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


def test_what_belongs_to_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason not to start, and what is missing meanwhile is none either."""
    root = tmp_path / "state"
    root.mkdir()
    (root / "theirs").touch()
    (root / "gone").touch()

    def refuse(path: Path, _: int) -> None:
        if path.name == "theirs":
            raise PermissionError
        if path.name == "gone":
            raise FileNotFoundError

    monkeypatch.setattr(Path, "chmod", refuse)

    assert keep_private(root) == [root / "theirs"]


def test_a_private_directory_is_not_walked_through(tmp_path: Path) -> None:
    """It would take seconds for a hundred thousand results, and nobody else gets that far."""
    tmp_path.chmod(0o700)
    (tmp_path / "inside").touch(0o644)

    keep_private(tmp_path)

    assert open_to_others(tmp_path) == [tmp_path / "inside"]
