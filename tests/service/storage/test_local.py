import errno
import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.errors import ScanNotFound, SettingsError, StorageFault, StorageFull
from service.storage import local
from service.storage.local import RESULT, StateDirectory, Upload


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """Return a fresh state directory."""
    return StateDirectory.open(tmp_path / "state")


def _attempt(state: StateDirectory, content: str) -> Path:
    folder = state.begin_attempt("job")
    (folder / RESULT).write_text(content)
    return folder


def _upload(state: StateDirectory, body: bytes, error: Exception | None = None) -> None:
    with Upload(state, "local") as upload:
        upload.write(body)
        if error is not None:
            raise error
        upload.flush()


def test_folders_are_created(state: StateDirectory) -> None:
    """Opening creates all folders of a state directory."""
    folders = {path.name for path in state.root.iterdir() if path.is_dir()}

    assert folders == {"scans", "work", "results", "incoming", "dicom", "changes", "received"}
    assert state.database.parent == state.root


def test_another_process_is_refused(state: StateDirectory) -> None:
    """A second service on the same directory gets an error with advice."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom service.errors import SettingsError\n"
        "from service.storage.local import StateDirectory\n"
        "try:\n    StateDirectory.open(Path(sys.argv[1]))\n"
        "except SettingsError as error:\n    print(error.detail)\n"
    )
    command = [sys.executable, "-c", script, str(state.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "Another calibrant serve uses this state directory" in done.stdout
    assert "CALIBRANT_STATE_DIR" in done.stdout


def test_a_refused_opening_removes_nothing(state: StateDirectory) -> None:
    """Files of the first service stay, also if the second opening is in the same process."""
    attempt = _attempt(state, "in progress")
    (state.incoming / "upload").write_bytes(b"half")

    with pytest.raises(SettingsError, match="Stop it"):
        StateDirectory.open(state.root)

    assert (attempt / RESULT).read_text() == "in progress"
    assert (state.incoming / "upload").read_bytes() == b"half"


def test_a_refused_opening_keeps_no_file_open(state: StateDirectory) -> None:
    """A refused opening closes the descriptor of the lock."""
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(SettingsError):
        StateDirectory.open(state.root)

    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    """After a crash the directory can be opened again without removing a file."""
    root = tmp_path / "state"
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom service.storage.local import StateDirectory\n"
        "StateDirectory.open(Path(sys.argv[1]))\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], check=False)

    assert done.returncode == -9
    assert (root / "lock").exists()
    StateDirectory.open(root)
    with (root / "lock").open("rb") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_opening_removes_leftovers_of_a_crash(tmp_path: Path) -> None:
    """Unfinished uploads and attempts are removed; scans and results stay."""
    root = tmp_path / "state"
    keep = [root / "scans" / "local" / "abc", root / "results" / "job" / RESULT]
    sweep = [root / "incoming" / "upload", root / "work" / "job" / "attempt" / "mask", root / "work" / "stray"]
    for path in (*keep, *sweep):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")

    state = StateDirectory.open(root)

    assert all(path.read_bytes() == b"content" for path in keep)
    assert [*state.work.iterdir(), *state.incoming.iterdir()] == []


def test_attempts_never_share_a_folder(state: StateDirectory) -> None:
    """A late writer of an earlier attempt cannot touch the files of the next."""
    first, second = state.begin_attempt("job"), state.begin_attempt("job")

    assert first != second
    assert [*first.iterdir(), *second.iterdir()] == []


def test_an_attempt_is_no_result_until_it_is_published(state: StateDirectory) -> None:
    """The rename makes a complete result visible at once."""
    attempt = _attempt(state, "whole")
    assert state.result("job") is None

    state.publish("job", attempt)

    result = state.result("job")
    assert result is not None
    assert (result / RESULT).read_text() == "whole"
    assert not (state.work / "job").exists()


def test_the_first_published_attempt_wins(state: StateDirectory) -> None:
    """A later attempt changes nothing of the result and leaves no files."""
    first, second = _attempt(state, "first"), _attempt(state, "second")
    (second / "more").write_bytes(b"late")
    state.publish("job", first)
    second.mkdir(parents=True)  # clear_attempts took it: the late writer comes back to life
    (second / RESULT).write_text("second")

    state.publish("job", second)

    assert [path.name for path in (state.results / "job").iterdir()] == [RESULT]
    assert (state.results / "job" / RESULT).read_text() == "first"
    assert not (state.work / "job").exists()


def test_an_incomplete_attempt_is_never_a_result(state: StateDirectory) -> None:
    """A folder without `result.json` is not a result, even in results/."""
    attempt = state.begin_attempt("job")
    (attempt / "mask.nii.gz").write_bytes(b"half")
    state.publish("job", attempt)

    assert state.result("job") is None


def test_publishing_flushes_the_entry(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rename is flushed to the disk before `publish` returns."""
    flushed: list[tuple[Path, bool]] = []
    monkeypatch.setattr(local, "sync_folder", lambda folder: flushed.append((folder, (folder / "job").exists())))

    state.publish("job", _attempt(state, "whole"))

    assert flushed == [(state.results, True)]


def test_an_unexpected_failure_of_publishing_is_raised(state: StateDirectory) -> None:
    """Publishing a missing attempt fails."""
    with pytest.raises(FileNotFoundError):
        state.publish("job", state.work / "job" / "missing")


def test_a_kept_upload_is_named_by_its_content(state: StateDirectory) -> None:
    """The body is stored in scans/ under its SHA-256, and nothing remains in incoming/."""
    with Upload(state, "local") as upload:
        for chunk in (b"ab", b"", b"c"):
            upload.write(chunk)
        upload.flush()
        sha256 = upload.keep()

    assert sha256 == hashlib.sha256(b"abc").hexdigest()
    assert state.scan("local", sha256).read_bytes() == b"abc"
    assert [*state.incoming.iterdir()] == []


def test_the_same_body_twice_is_one_scan(state: StateDirectory) -> None:
    """Two uploads of equal bytes give one file."""
    for _ in range(2):
        with Upload(state, "local") as upload:
            upload.write(b"abc")
            upload.flush()
            upload.keep()

    assert len([*state.scans.glob("*/*")]) == 1


def test_flush_brings_every_byte_to_the_disk(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """When fsync is called the file already has its full length."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))

    with Upload(state, "local") as upload:
        upload.write(b"abc")
        upload.flush()

    assert sizes == [3]


def test_an_upload_that_was_not_kept_leaves_nothing(state: StateDirectory) -> None:
    """An error before `keep` removes the file and is raised."""
    with pytest.raises(KeyError):
        _upload(state, b"abc", KeyError())

    assert [*state.incoming.iterdir(), *state.scans.iterdir()] == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_storage_full(state: StateDirectory, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The error says that no space is left, and the partial file is removed."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFull, match="no space left"):
        _upload(state, b"abc")

    assert [*state.incoming.iterdir()] == []


@pytest.mark.parametrize("synced", ["the file", "its folder"])
def test_f7_r5_a_failed_flush_is_never_acknowledged(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, synced: str
) -> None:
    """An input/output error while file or folder is flushed is said, and flushing is not tried again."""
    calls: list[int] = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        if synced == "the file" or len(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFault, match=os.strerror(errno.EIO)) as caught:
        _keep(state, "local", b"abc")

    assert (caught.value.status, caught.value.retry_after_s) == (503, 30)
    assert len(calls) == (1 if synced == "the file" else 2)
    assert [*state.incoming.iterdir()] == []


def test_f7_a_reserve_stays_free(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload to an almost full disk is refused before a byte of it is written."""
    careful = StateDirectory(state.root, 1 << 30)
    assert careful.least_free_bytes <= shutil.disk_usage(state.root).total // 50
    _keep(careful, "local", b"abc")
    almost_full = shutil.disk_usage(state.root)._replace(free=careful.least_free_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: almost_full)

    with pytest.raises(StorageFull, match="no space left"):
        Upload(careful, "local")

    assert [*state.incoming.iterdir()] == []


def test_f15_a_directory_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names directory, reason and setting."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(SettingsError, match=r"Read-only file system.*CALIBRANT_STATE_DIR") as caught:
        StateDirectory.open(tmp_path / "state")

    assert str(tmp_path / "state") in caught.value.detail


@contextmanager
def _no_file_beyond(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("body", [bytes(8), bytes(1 << 20)], ids=["buffered", "beyond the buffer"])
def test_a_disk_that_really_fills_up_leaves_nothing(state: StateDirectory, body: bytes) -> None:
    """If the system refuses bytes, even buffered ones at the end, the error is StorageFull and no file remains.

    A limit on the size of files simulates a full disk.
    """
    with pytest.raises(StorageFull), _no_file_beyond(4):
        _upload(state, body)

    assert [*state.incoming.iterdir()] == []


def _keep(state: StateDirectory, owner: str, body: bytes) -> str:
    with Upload(state, owner) as upload:
        upload.write(body)
        upload.flush()
        return upload.keep()


def test_each_owner_has_scans_of_their_own(state: StateDirectory) -> None:
    """Equal scans of two owners are two files, and neither owner sees or erases the other's."""
    ours, theirs = _keep(state, "we", b"abc"), _keep(state, "they", b"abc")
    assert ours == theirs
    assert (state.find_scan("we", ours).id, state.find_scan("we", ours).bytes) == (ours, 3)
    with pytest.raises(ScanNotFound):
        state.find_scan("others", ours)

    state.forget_scan("we", ours)

    with pytest.raises(ScanNotFound, match="upload it again"):
        state.find_scan("we", ours)
    assert state.find_scan("they", theirs).bytes == 3
    state.forget_scan("we", ours)


@pytest.mark.parametrize("sha256", ["", ".", "..", "../they", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", "0" * 64])
def test_an_invalid_scan_id_is_not_found(state: StateDirectory, sha256: str) -> None:
    """No id leads out of the folder, and a folder is not a scan."""
    (state.scans / "we" / ("0" * 64)).mkdir(parents=True)

    with pytest.raises(ScanNotFound):
        state.find_scan("we", sha256)


def test_the_folder_of_a_new_owner_is_flushed(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder and each file are flushed before `keep` returns."""
    flushed: list[Path] = []
    monkeypatch.setattr(local, "sync_folder", flushed.append)

    _keep(state, "we", b"abc")
    _keep(state, "we", b"abd")

    assert flushed == [state.scans, state.scans / "we", state.scans / "we"]


def test_an_erased_job_has_no_file(state: StateDirectory) -> None:
    """Result and attempts of one job are removed, those of another stay, and a second removal is no error."""
    state.publish("job", _attempt(state, "whole"))
    other = state.begin_attempt("other")
    _attempt(state, "late")

    state.forget_job("job")
    state.forget_job("job")

    assert state.result("job") is None
    assert [*state.results.iterdir()] == []
    assert [*state.work.iterdir()] == [other.parent]


def test_a_state_directory_has_a_unique_name(tmp_path: Path) -> None:
    """It is created once and kept; a database server identifies the directory by it."""
    one, other = StateDirectory.open(tmp_path / "one"), StateDirectory.open(tmp_path / "other")

    assert one.identity == one.identity == StateDirectory(tmp_path / "one").identity
    assert one.identity != other.identity
    assert list(one.incoming.iterdir()) == []
