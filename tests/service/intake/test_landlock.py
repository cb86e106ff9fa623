import errno
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from service.intake import landlock
from service.intake.landlock import landlock_version, read_only_this

needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")

FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "read another file": lambda _: Path("/etc/passwd").read_bytes(),
    "list a folder": lambda _: list(Path("/").iterdir()),
    "write beside it": lambda path: path.with_name("other").write_bytes(b""),
    "write to it": lambda path: path.open("ab"),
    "empty it": lambda path: os.truncate(path, 0),
    "remove it": lambda path: path.unlink(),
    "rename it": lambda path: path.rename(path.with_name("other")),
    "make a folder": lambda path: path.with_name("other").mkdir(),
    "link to it": lambda path: path.with_name("other").symlink_to("/etc/passwd"),
    "start a program": lambda _: os.execv("/bin/true", ["true"]),  # noqa: S606 - it must not start
}


def _attempt(path: Path, name: str) -> None:
    read_only_this(path)
    try:
        FORBIDDEN[name](path)
    except OSError as error:
        os._exit(error.errno or 0)
    os._exit(0)


def _read(path: Path) -> None:
    read_only_this(path)
    os._exit(len(path.read_bytes()))


def _connect(path: Path, port: int) -> None:
    read_only_this(path)
    with socket.socket() as connection:
        os._exit(connection.connect_ex(("127.0.0.1", port)))


def _fork(work: Callable[[], None]) -> int:
    """Return the exit code of a forked process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads; the child uses none
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a file of seven bytes."""
    path = tmp_path / "scan"
    path.write_bytes(b"a scan.")
    return path


@needs_landlock
def test_the_one_file_is_read(scan: Path) -> None:
    """A confined process reads all seven bytes of it."""
    assert _fork(lambda: _read(scan)) == 7


@needs_landlock
@pytest.mark.parametrize("name", FORBIDDEN)
def test_everything_else_is_forbidden(name: str, scan: Path) -> None:
    """The kernel refuses, whatever user the process runs as, and the file stays unchanged."""
    assert _fork(lambda: _attempt(scan, name)) == errno.EACCES
    assert scan.read_bytes() == b"a scan."
    assert list(scan.parent.iterdir()) == [scan]


@pytest.mark.skipif(landlock_version() < 4, reason="this kernel's Landlock knows no TCP (version 4)")
def test_no_connection_is_opened(scan: Path) -> None:
    """A process taken over by a file cannot open a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert _fork(lambda: _connect(scan, server.getsockname()[1])) == errno.EACCES


@needs_landlock
def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """The process is then not confined, so the caller must not go on."""
    with pytest.raises(OSError, match="missing"):
        read_only_this(tmp_path / "missing")


def test_without_landlock_nothing_happens(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On old kernels and other systems the call does nothing."""
    monkeypatch.setattr(landlock, "landlock_version", lambda: 0)
    read_only_this(scan)
    assert Path("/etc/passwd").read_bytes()


@pytest.mark.parametrize(
    ("version", "size", "file_rights"),
    [(1, 8, 13), (2, 8, 14), (3, 8, 15), (4, 16, 15), (5, 16, 16), (6, 24, 16), (7, 24, 16)],
)
def test_each_version_is_asked_for_what_it_knows(version: int, size: int, file_rights: int) -> None:
    """Sizes of struct landlock_ruleset_attr and rights agree with include/uapi/linux/landlock.h."""
    attributes, attributes_size = landlock._ruleset(version)

    assert attributes_size == len(attributes) == size
    assert int.from_bytes(attributes[:8], "little") == (1 << file_rights) - 1
