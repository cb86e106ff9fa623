import gzip
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from service import errors
from service.intake import sandbox
from service.intake.budget import claim_of
from service.intake.decode import decode_scan
from service.intake.landlock import landlock_version
from service.intake.sandbox import Limits, check_sandboxed, decode_sandboxed, select_sandboxed
from tests.dicom_checks import program
from tests.service.intake.conftest import Watched, kill_decoders, limits_of, settle

Hostile = tuple[bytes, type[errors.CalibrantError]]

Nifti = Callable[..., bytes]


@pytest.fixture
def scan(nifti: Nifti, tmp_path: Path) -> Path:
    """Return a small scan."""
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti())
    return path


def test_the_sandbox_returns_what_decoding_returns(scan: Path) -> None:
    """Voxels, their type, affine, header and warnings are the same as without the sandbox."""
    expected, sandboxed = decode_scan(scan), decode_sandboxed(scan)

    assert sandboxed.array_CDHW.dtype == expected.array_CDHW.dtype
    assert np.array_equal(sandboxed.array_CDHW, expected.array_CDHW)
    assert sandboxed.affine.tobytes() == expected.affine.tobytes()
    assert (sandboxed.header, sandboxed.warnings) == (expected.header, expected.warnings)


@pytest.mark.parametrize(
    "fields",
    [{"scl_slope": 0.5}, {"endianness": ">"}, {"version": 2}, {"qoffset_x": 1}],
    ids=["scaled", "big-endian", "NIfTI-2", "with a warning"],
)
def test_every_kind_of_scan_passes_the_pipe(fields: dict[str, Any], nifti: Nifti, tmp_path: Path) -> None:
    """Nothing is lost between the processes for any version, byte order and scale of the file."""
    path = tmp_path / "scan"
    path.write_bytes(nifti(**fields))

    expected, sandboxed = decode_scan(path), decode_sandboxed(path)

    assert sandboxed.array_CDHW.tobytes() == expected.array_CDHW.tobytes()
    assert sandboxed.affine.tobytes() == expected.affine.tobytes()
    assert (sandboxed.header, sandboxed.warnings) == (expected.header, expected.warnings)


@pytest.mark.parametrize("form", ["NRRD", "NRRD gzip", "MHA", "MHA zlib"])
def test_other_formats_pass_the_pipe(form: str, nrrd: Nifti, mha: Nifti, tmp_path: Path) -> None:
    """NRRD and MetaImage are read the same inside and outside the confined process."""
    voxels = np.arange(120, dtype="<i2").tobytes()
    path = tmp_path / "scan"
    path.write_bytes(
        {
            "NRRD": lambda: nrrd(voxels),
            "NRRD gzip": lambda: nrrd(gzip.compress(voxels), encoding="gzip"),
            "MHA": lambda: mha(voxels),
            "MHA zlib": lambda: mha(zlib.compress(voxels), CompressedData="True"),
        }[form]()
    )

    expected, sandboxed = decode_scan(path), decode_sandboxed(path)

    np.testing.assert_array_equal(sandboxed.array_CDHW, expected.array_CDHW)
    assert sandboxed.header == expected.header


@pytest.mark.parametrize(
    "transfer_syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless],
    ids=lambda syntax: syntax.keyword,
)
def test_dicom_needs_no_file_but_its_own(
    transfer_syntax: uid.UID, slices_of: Callable[..., list[Dataset]], zip_of: Nifti, tmp_path: Path
) -> None:
    """Every decoder is loaded before the process is confined, since none can be loaded afterwards."""
    images = slices_of(np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.int16))
    for image in images:
        if transfer_syntax.is_compressed:
            image.compress(transfer_syntax, generate_instance_uid=False)
        else:
            image.file_meta.TransferSyntaxUID = transfer_syntax
    path = tmp_path / "scan"
    path.write_bytes(zip_of(images))
    stated = check_sandboxed(path)

    expected, sandboxed = decode_scan(path), decode_sandboxed(path)

    assert stated == sandboxed.stated == expected.stated
    assert stated["Modality"] == ("CT",)
    np.testing.assert_array_equal(sandboxed.array_CDHW, expected.array_CDHW)
    np.testing.assert_array_equal(sandboxed.affine, expected.affine)


def test_declared_padding_passes_the_pipe(
    slices_of: Callable[..., list[Dataset]], zip_of: Nifti, tmp_path: Path
) -> None:
    """Flags lie behind the voxels in the shared memory, in the same order."""
    array = np.random.default_rng(8).integers(-3, 900, (5, 4, 6)).astype("<i2")
    images = slices_of(array)
    for image in images:
        image.PixelPaddingValue, image.PixelPaddingRangeLimit = -3, 200
    path = tmp_path / "scan"
    path.write_bytes(zip_of(images))

    expected, sandboxed = decode_scan(path), decode_sandboxed(path)

    assert sandboxed.padding is not None
    assert expected.padding is not None
    np.testing.assert_array_equal(sandboxed.padding, array <= 200)
    np.testing.assert_array_equal(expected.padding, array <= 200)
    np.testing.assert_array_equal(sandboxed.array_CDHW, expected.array_CDHW)


def test_jpeg_lossless_needs_no_file_but_its_own(
    slices_of: Callable[..., list[Dataset]], dicom_file: Callable[[Dataset], bytes], zip_of: Nifti, tmp_path: Path
) -> None:
    """GDCM's decoder is loaded before the process is confined, too; DCMTK writes the files."""
    array = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint16)
    files = {}
    for number, image in enumerate(slices_of(array)):
        native, packed = tmp_path / f"{number}.native", tmp_path / f"{number}.packed"
        native.write_bytes(dicom_file(image))
        subprocess.run([program("dcmcjpeg", "dcmtk"), "+e1", "+un", str(native), str(packed)], check=True)
        files[str(number)] = packed.read_bytes()
    path = tmp_path / "scan"
    path.write_bytes(zip_of(files))

    np.testing.assert_array_equal(decode_sandboxed(path).array_CDHW[0], array)


def test_the_headers_of_a_series_pass_the_pipe(
    slices_of: Callable[..., list[Dataset]], zip_of: Nifti, tmp_path: Path
) -> None:
    """The headers for DICOM results are the same as without the sandbox."""
    path = tmp_path / "scan"
    path.write_bytes(zip_of(slices_of()))

    assert decode_sandboxed(path).source == decode_scan(path).source
    assert decode_scan(path).source is not None


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
def test_a_confined_process_reads_the_scan_and_nothing_else(scan: Path) -> None:
    """A confined process can open the scan but not /etc/passwd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads; the child uses none
        child = os.fork()
    if child == 0:
        try:
            # The fork has inherited the memory and the open files of all earlier tests.
            os.closerange(3, 1 << 16)
            sandbox._confine(scan, Limits(memory_bytes=1 << 40), 0)
            with suppress(PermissionError):
                Path("/etc/passwd").read_bytes()
                os._exit(200)
            os._exit(len(scan.read_bytes()) % 100)
        finally:
            os._exit(201)  # whatever went wrong: a fork must not go on as a second pytest

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == scan.stat().st_size % 100


def test_a_kernel_without_landlock_is_told_once(
    scan: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Decoding goes on, and the log warns once that files are not protected."""
    monkeypatch.setattr(sandbox, "landlock_version", lambda: 0)
    sandbox._warn_without_landlock.cache_clear()

    check_sandboxed(scan)
    check_sandboxed(scan)

    sandbox._warn_without_landlock.cache_clear()
    assert [record.getMessage()[:27] for record in caplog.records] == ["This kernel has no Landlock"]


def test_a_volume_of_many_megabytes_passes_the_pipe(nifti: Nifti, tmp_path: Path) -> None:
    """A volume much larger than a pipe's buffer arrives complete and in order."""
    array = np.random.default_rng(8).integers(-1000, 3000, (200, 150, 100)).astype(np.int16)
    path = tmp_path / "scan"
    path.write_bytes(nifti(array))

    assert np.array_equal(decode_sandboxed(path).array_CDHW[0], array)


def test_checking_looks_at_the_whole_file_and_returns_nothing(scan: Path, nifti: Nifti, tmp_path: Path) -> None:
    """A good file passes; one with a missing byte is refused."""
    check_sandboxed(scan)
    (tmp_path / "cut").write_bytes(nifti()[:-1])

    with pytest.raises(errors.PayloadTruncated):
        check_sandboxed(tmp_path / "cut")


def test_an_error_keeps_its_class_and_its_words(undecodable: Hostile, tmp_path: Path) -> None:
    """The caller gets the same error as without the sandbox, so no code was missing inside."""
    content, error = undecodable
    path = tmp_path / "scan"
    path.write_bytes(content)
    with pytest.raises(errors.ScanError) as expected:
        decode_scan(path)
    with pytest.raises(errors.ScanError) as sandboxed:
        decode_sandboxed(path)

    assert type(sandboxed.value) is type(expected.value) is error
    assert sandboxed.value.detail == expected.value.detail


def test_a_decoder_that_takes_too_long_is_stopped(slow_scan: Path, watched: Watched) -> None:
    """The deadline is in wall time, and the process has ended when the error is raised."""
    started = time.monotonic()

    with pytest.raises(errors.DecoderDeadline, match=r"^Decoding took longer than 1 s and was stopped\."):
        check_sandboxed(slow_scan, Limits(seconds=0.6))

    assert 0.5 < time.monotonic() - started < 10
    with pytest.raises(ValueError, match="closed"):
        watched.started[0].is_alive()


def test_a_decoder_that_dies_twice_is_reported(
    decoding: tuple[int, list[BaseException]], watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """A file whose decoder was killed is decoded again; a second death counts as a fault of the file."""
    pid, raised = decoding

    os.kill(pid, signal.SIGKILL)
    while not raised:
        kill_decoders(watched)
        time.sleep(0.05)

    assert type(raised[0]) is errors.DecoderCrashed
    assert raised[0].status == 422
    assert [record.getMessage() for record in caplog.records] == ["decoding process died, exit code -9"] * 2


def test_a_scan_outlives_the_death_of_its_decoder(scan: Path, watched: Watched) -> None:
    """A process that is killed while it decodes is replaced, and its voxels are those of the file."""
    killed: list[int] = []

    def kill_first() -> None:
        while not watched.started or watched.started[0].pid is None:
            time.sleep(0.001)
        os.kill(watched.started[0].pid, signal.SIGKILL)
        killed.append(watched.started[0].pid)

    killer = threading.Thread(target=kill_first)
    killer.start()
    decoded = decode_sandboxed(scan)
    killer.join()

    assert killed
    assert np.array_equal(decoded.array_CDHW, decode_scan(scan).array_CDHW)


def test_the_limits_are_those_of_the_process(decoding: tuple[int, list[BaseException]]) -> None:
    """Soft and hard limits of memory, processor time, file size, open files and core dumps are set."""
    limits = limits_of(decoding[0])

    assert limits["Max address space"] == [str(4 << 30)] * 2
    assert limits["Max cpu time"] == ["60"] * 2
    assert limits["Max file size"] == ["0"] * 2
    assert limits["Max open files"] == ["64"] * 2
    assert limits["Max core file size"] == ["0"] * 2


def test_what_a_decoder_prints_goes_nowhere(decoding: tuple[int, list[BaseException]]) -> None:
    """Standard output and error are the null device, since a library's message could repeat the file."""
    opened = [Path(f"/proc/{decoding[0]}/fd/{n}").readlink() for n in (1, 2)]

    assert opened == [Path(os.devnull)] * 2


def test_a_scan_beyond_the_memory_limit_is_too_large(slow_scan: Path) -> None:
    """4 GB of voxels do not fit into 1 GiB, and the message says so."""
    with pytest.raises(errors.VolumeTooLarge, match=r"^The volume needs more than the 1 GiB that decoding may use\."):
        decode_sandboxed(slow_scan, Limits(memory_bytes=1 << 30))


def test_f10_a_check_takes_no_more_than_its_file_may_claim(
    slices_of: Callable[..., list[Dataset]], dicom_file: Callable[[Dataset], bytes], tmp_path: Path
) -> None:
    """The kernel holds the process to it, whatever the file unpacks to; more is refused with the limit."""
    image = slices_of(np.zeros((2000, 2000, 1), np.int16))[0]
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom_file(image))

    with pytest.raises(errors.UnsupportedDimensions):  # one image is no volume: it was read
        check_sandboxed(path, Limits(data_bytes=claim_of(path)))
    with pytest.raises(errors.VolumeTooLarge, match="more than the 4 MiB that the check"):
        check_sandboxed(path, Limits(data_bytes=4 << 20))


def test_f10_a_chosen_series_is_written_to_the_disk(
    slices_of: Callable[..., list[Dataset]], zip_of: Nifti, tmp_path: Path
) -> None:
    """The process writes into the file that it is given, and never into memory that grows with the series."""
    path = tmp_path / "scan.zip"
    path.write_bytes(zip_of(slices_of()))
    with (tmp_path / "chosen").open("w+b") as chosen:
        select_sandboxed(path, "1.2.5", chosen)

    assert decode_scan(tmp_path / "chosen").shape == decode_scan(path).shape


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_f10_a_full_disk_is_not_the_files_fault(
    slices_of: Callable[..., list[Dataset]], zip_of: Nifti, tmp_path: Path
) -> None:
    """A series that does not fit ends in 507, not in a decoder that crashed."""
    path = tmp_path / "scan.zip"
    path.write_bytes(zip_of(slices_of(np.random.default_rng(1).integers(0, 999, (100, 100, 20)).astype(np.int16))))
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(errors.StorageFull), (small / "chosen").open("w+b") as chosen:
            select_sandboxed(path, "1.2.5", chosen)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_file_that_is_not_there_is_an_error_of_the_decoder(tmp_path: Path) -> None:
    """An unexpected failure ends the child silently, and the caller gets DecoderCrashed."""
    with pytest.raises(errors.DecoderCrashed):
        check_sandboxed(tmp_path / "missing")


def test_many_files_are_decoded_at_a_time(scan: Path) -> None:
    """Concurrent threads do not get each other's answers."""
    decoded: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: decoded.append(decode_sandboxed(scan).array_CDHW.tobytes())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert decoded == [decode_scan(scan).array_CDHW.tobytes()] * 8


def test_a_sandbox_costs_little(scan: Path, tmp_path: Path) -> None:
    """Processes are forked, not started anew: the fastest of nine takes less than a tenth of a second.

    It is measured from a script with the imports of `calibrant`, because multiprocessing repeats them in each process.
    """
    script = tmp_path / "calibrant"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from service.commands.cli import main\n"
        "if __name__ == '__main__':\n"
        "    from service.intake.sandbox import decode_sandboxed\n"
        "    for _ in range(10):\n"
        "        started = time.monotonic()\n"
        "        decode_sandboxed(Path(sys.argv[1]))\n"
        "        print(time.monotonic() - started)\n"
    )
    done = subprocess.run([sys.executable, script, scan], check=True, capture_output=True, text=True)

    first, *others = map(float, done.stdout.split())
    assert min(others) < 0.1, (first, others)


def test_the_shared_memory_keeps_its_size() -> None:
    """It cannot be resized, since shrinking it under a mapping would kill the parent; while empty it takes no memory."""
    shared = sandbox._shared_memory(1 << 40)
    try:
        assert os.fstat(shared).st_blocks == 0
        for size in (0, 1 << 41):
            with pytest.raises(PermissionError):
                os.ftruncate(shared, size)
    finally:
        os.close(shared)


def test_nobody_can_write_to_sealed_memory() -> None:
    """Sealing fails while a writable mapping exists; afterwards no holder of a descriptor can write."""
    shared = sandbox._shared_memory(mmap.PAGESIZE)
    try:
        with mmap.mmap(shared, mmap.PAGESIZE) as memory:
            assert not sandbox._sealed(shared)
            memory[:6] = b"voxels"
        assert sandbox._sealed(shared)
        with pytest.raises(PermissionError):
            mmap.mmap(shared, mmap.PAGESIZE)
        with pytest.raises(PermissionError):
            os.pwrite(shared, b"others", 0)
        assert os.pread(shared, 6, 0) == b"voxels"
    finally:
        os.close(shared)


@pytest.fixture
def seals(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return the outcomes of all attempts to seal the memory of a scan."""
    outcomes: list[bool] = []
    original = sandbox._sealed

    def seal(shared: int) -> bool:
        outcomes.append(original(shared))
        return outcomes[-1]

    monkeypatch.setattr(sandbox, "_sealed", seal)
    return outcomes


def test_the_voxels_outlive_the_child_and_cannot_be_changed(seals: list[bool], watched: Watched, scan: Path) -> None:
    """The memory is sealed against writes, and the voxels stay valid after the child has ended."""
    sandboxed = decode_sandboxed(scan)

    assert seals == [True]
    assert not sandboxed.array_CDHW.flags.writeable
    assert np.array_equal(sandboxed.array_CDHW, decode_scan(scan).array_CDHW)
    settle()
    with pytest.raises(ValueError, match="closed"):
        watched.started[0].is_alive()
    assert np.array_equal(sandboxed.array_CDHW, decode_scan(scan).array_CDHW)


def test_a_child_that_could_still_write_is_dead_before_its_voxels_are_seen(
    monkeypatch: pytest.MonkeyPatch, watched: Watched, scan: Path
) -> None:
    """A child that keeps the memory mapped, e.g. taken over by a hostile file, is killed first."""
    monkeypatch.setattr(sandbox, "_sealed", lambda _shared: False)

    sandboxed = decode_sandboxed(scan)

    with pytest.raises(ValueError, match="closed"):
        watched.started[0].is_alive()
    assert np.array_equal(sandboxed.array_CDHW, decode_scan(scan).array_CDHW)


def test_the_process_for_the_next_scan_waits_for_it(watched: Watched, scan: Path) -> None:
    """Each process is used once; one that died while waiting is replaced; one whose parent ends exits."""
    check_sandboxed(scan)
    waiting = sandbox._NEXT.get(timeout=10)
    sandbox._NEXT.put(waiting)
    assert watched.started[1:] == [waiting.process]
    check_sandboxed(scan)
    settle()
    with pytest.raises(ValueError, match="closed"):
        waiting.process.is_alive()

    dead = sandbox._NEXT.get(timeout=10)
    dead.process.kill()
    dead.process.join()
    sandbox._NEXT.put(dead)
    check_sandboxed(scan)

    left = sandbox._NEXT.get(timeout=10)
    left.pipe.close()
    left.process.join(10)
    assert left.process.exitcode == 0


def test_the_first_scan_does_not_wait_for_the_server_of_processes() -> None:
    """The server of processes is started in advance, because its imports take longer than decoding a scan."""
    code = (
        "import time; from multiprocessing import forkserver; from service.intake.sandbox import start_sandbox\n"
        "start_sandbox(); print(forkserver._forkserver._forkserver_pid is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_f1_a_thin_scan_of_20_mm_is_answered_at_once(nifti: Nifti, tmp_path: Path) -> None:
    """2 x 2 x 2000 voxels of 20 mm, 40 m long, cost the process that checks them next to nothing."""
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(
        gzip.compress(nifti(np.arange(8000, dtype=np.int16).reshape(2, 2, 2000), np.diag([20.0, 20, 20, 1])))
    )
    seconds = []
    for _ in range(5):
        settle()
        started = time.perf_counter()
        with pytest.raises(errors.InvalidSpacing, match="at most 5000 mm"):
            check_sandboxed(path)
        seconds.append(time.perf_counter() - started)

    assert min(seconds) < 0.2
