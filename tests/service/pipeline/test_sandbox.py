import gzip
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import errors
from service.pipeline import sandbox
from service.pipeline.decode import decode_scan
from service.pipeline.sandbox import Limits, check_sandboxed, decode_sandboxed

Hostile = tuple[bytes, type[errors.CalibrantError]]
Nifti = Callable[..., bytes]

MEBIBYTE = 1 << 20


class Watched:
    """The forkserver's context, which keeps every process that it starts."""

    def __init__(self) -> None:
        self.started: list[BaseProcess] = []
        self._context = sandbox._PROCESSES
        self.Pipe = self._context.Pipe

    def Process(self, **options: Any) -> BaseProcess:  # noqa: N802, ANN401 - as the context spells it
        """Return a process that has not been started."""
        self.started.append(self._context.Process(**options))
        return self.started[-1]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Return the processes that are started from now on."""
    watched = Watched()
    monkeypatch.setattr(sandbox, "_PROCESSES", watched)
    return watched


@pytest.fixture
def scan(nifti: Nifti, tmp_path: Path) -> Path:
    """Return a small scan."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti())
    return path


@pytest.fixture(scope="module")
def slow_scan(nifti: Nifti, patch: Nifti, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 4 MB that is a valid scan of 4 GB: seconds of decompression, and as much memory as it says.

    Its voxels are gzip members of 16 MB of zeros each, one after the other.
    """
    header = patch(nifti(np.zeros((2, 2, 2))), dim_1=512, dim_2=512, dim_3=2048)[:352]
    member = gzip.compress(bytes(16 * MEBIBYTE))
    path = tmp_path_factory.mktemp("slow") / "scan.nii.gz"
    path.write_bytes(gzip.compress(header) + member * 256)
    return path


@pytest.fixture(name="decoding")
def decoding_(watched: Watched, slow_scan: Path) -> Iterator[tuple[int, list[BaseException]]]:
    """Yield the id of a process that decodes a slow scan, and where its error will stand once it has ended."""
    found: list[BaseException] = []

    def decode() -> None:
        try:
            check_sandboxed(slow_scan, Limits(memory_bytes=4 << 30, seconds=59))
        except BaseException as error:  # noqa: BLE001 - handed over to the test
            found.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    deadline = time.monotonic() + 20
    while not watched.started or not (watched.started[0].pid and _is_confined(watched.started[0].pid)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    pid = watched.started[0].pid
    assert pid is not None
    yield pid, found
    thread.join()


def _limits_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


def _is_confined(pid: int) -> bool:
    return _limits_of(pid)["Max core file size"] == ["0", "0"]  # the last that is set


def test_the_sandbox_returns_what_decoding_returns(scan: Path) -> None:
    """Voxels, type, affine, header and warnings come back unchanged, as native numbers."""
    expected, found = decode_scan(scan), decode_sandboxed(scan)

    assert found.array_CDHW.dtype == expected.array_CDHW.dtype
    assert np.array_equal(found.array_CDHW, expected.array_CDHW)
    assert found.affine.tobytes() == expected.affine.tobytes()
    assert (found.header, found.warnings) == (expected.header, expected.warnings)


@pytest.mark.parametrize(
    "fields",
    [{"scl_slope": 0.5}, {"endianness": ">"}, {"version": 2}, {"qoffset_x": 1}],
    ids=["scaled", "big-endian", "NIfTI-2", "with a warning"],
)
def test_every_kind_of_scan_passes_the_pipe(fields: dict[str, Any], nifti: Nifti, tmp_path: Path) -> None:
    """Nothing is lost between the processes, whatever the file's version, byte order and scale."""
    path = tmp_path / "scan"
    path.write_bytes(nifti(**fields))

    expected, found = decode_scan(path), decode_sandboxed(path)

    assert found.array_CDHW.tobytes() == expected.array_CDHW.tobytes()
    assert found.affine.tobytes() == expected.affine.tobytes()
    assert (found.header, found.warnings) == (expected.header, expected.warnings)


def test_a_volume_of_many_megabytes_passes_the_pipe(nifti: Nifti, tmp_path: Path) -> None:
    """Far more than a pipe holds at once arrives whole and in order."""
    array = np.random.default_rng(8).integers(-1000, 3000, (200, 150, 100)).astype(np.int16)
    path = tmp_path / "scan"
    path.write_bytes(nifti(array))

    assert np.array_equal(decode_sandboxed(path).array_CDHW[0], array)


def test_checking_looks_at_the_whole_file_and_returns_nothing(scan: Path, nifti: Nifti, tmp_path: Path) -> None:
    """A good file passes; one byte less is found."""
    check_sandboxed(scan)
    (tmp_path / "cut").write_bytes(nifti()[:-1])

    with pytest.raises(errors.PayloadTruncated):
        check_sandboxed(tmp_path / "cut")


def test_an_error_keeps_its_class_and_its_words(one_of_each: Hostile, tmp_path: Path) -> None:
    """The caller meets the same error as without the sandbox."""
    content, error = one_of_each
    path = tmp_path / "scan"
    path.write_bytes(content)
    with pytest.raises(errors.ScanError) as expected:
        decode_scan(path)
    with pytest.raises(errors.ScanError) as found:
        decode_sandboxed(path)

    assert type(found.value) is type(expected.value) is error
    assert found.value.detail == expected.value.detail


def test_a_decoder_that_takes_too_long_is_stopped(slow_scan: Path, watched: Watched) -> None:
    """The deadline holds in wall time, and the process is gone when the error arrives."""
    started = time.monotonic()

    with pytest.raises(errors.DecoderDeadline, match=r"^Decoding took longer than 1 s and was stopped\."):
        check_sandboxed(slow_scan, Limits(seconds=0.6))

    assert 0.5 < time.monotonic() - started < 10
    with pytest.raises(ValueError, match="closed"):
        watched.started[0].is_alive()


def test_a_decoder_that_dies_is_reported(decoding: tuple[int, list[BaseException]]) -> None:
    """A killed process is the file's fault, not a crash of the service."""
    pid, found = decoding

    os.kill(pid, signal.SIGKILL)

    deadline = time.monotonic() + 20
    while not found:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert type(found[0]) is errors.DecoderCrashed
    assert found[0].status == 422


def test_the_limits_are_those_of_the_process(decoding: tuple[int, list[BaseException]]) -> None:
    """Memory, processor time, file size, open files and core dumps of the living process are limited, softly and hard."""
    limits = _limits_of(decoding[0])

    assert limits["Max address space"] == [str(4 << 30)] * 2
    assert limits["Max cpu time"] == ["60"] * 2
    assert limits["Max file size"] == ["0"] * 2
    assert limits["Max open files"] == ["64"] * 2
    assert limits["Max core file size"] == ["0"] * 2
    os.kill(decoding[0], signal.SIGKILL)


def test_what_a_decoder_prints_goes_nowhere(decoding: tuple[int, list[BaseException]]) -> None:
    """Standard output and error are the null device: a library's message could repeat the file."""
    opened = [Path(f"/proc/{decoding[0]}/fd/{n}").readlink() for n in (1, 2)]
    os.kill(decoding[0], signal.SIGKILL)

    assert opened == [Path(os.devnull)] * 2


def test_a_scan_beyond_the_memory_limit_is_too_large(slow_scan: Path) -> None:
    """4 GB of voxels do not fit 1 GiB: the refusal says so, and the service's own memory is not touched."""
    with pytest.raises(errors.VolumeTooLarge, match=r"^The volume needs more than the 1 GiB that decoding may use\."):
        decode_sandboxed(slow_scan, Limits(memory_bytes=1 << 30))


def test_a_file_that_is_not_there_is_an_error_of_the_decoder(tmp_path: Path) -> None:
    """An unexpected failure ends the child without a word, and the caller is told that it died."""
    with pytest.raises(errors.DecoderCrashed):
        check_sandboxed(tmp_path / "missing")


def test_many_files_are_decoded_at_a_time(scan: Path) -> None:
    """Threads do not take one another's answers."""
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(decode_sandboxed(scan).array_CDHW.tobytes())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [decode_scan(scan).array_CDHW.tobytes()] * 8


def test_a_sandbox_costs_little(scan: Path) -> None:
    """The processes are forked, not started: the quickest of five takes less than a fifth of a second."""
    decode_sandboxed(scan)
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        decode_sandboxed(scan)
        seconds.append(time.monotonic() - started)

    assert min(seconds) < 0.2
