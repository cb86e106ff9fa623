"""Shared by the sandbox's tests: the decoding processes that are started, and one in the middle of its work."""

import gzip
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.intake import sandbox
from service.intake.sandbox import Limits, check_sandboxed

Nifti = Callable[..., bytes]

MEBIBYTE = 1 << 20


class Watched:
    """The forkserver's context, recording every process that it starts."""

    def __init__(self) -> None:
        self.started: list[BaseProcess] = []
        self._context = sandbox._PROCESSES
        self.Pipe = self._context.Pipe

    def Process(self, **options: Any) -> BaseProcess:  # noqa: N802, ANN401 - as the context spells it
        """Return a process that is not started yet."""
        self.started.append(self._context.Process(**options))
        return self.started[-1]


def settle() -> None:
    """Wait until the last process has ended and the next one is ready."""
    for thread in threading.enumerate():
        if thread.name == sandbox._PREPARING:
            thread.join()


def _end_waiting() -> None:
    """End the process that waits for the next file."""
    settle()
    with suppress(queue.Empty):
        sandbox._NEXT.get_nowait().end()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Return the processes that are started from now on."""
    _end_waiting()
    watched = Watched()
    monkeypatch.setattr(sandbox, "_PROCESSES", watched)
    return watched


@pytest.fixture(scope="module")
def slow_scan(nifti: Nifti, patch: Nifti, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 5 MB that is a valid scan of 4 GB: decoding it takes seconds and 4 GB of memory.

    Its voxels are consecutive gzip members of 16 MB of zeros each, but for some noise: without that no scan is so small.
    """
    header = patch(nifti(np.zeros((2, 2, 2))), dim_1=512, dim_2=512, dim_3=2048)[:352]
    member, noise = gzip.compress(bytes(16 * MEBIBYTE)), np.random.default_rng(1).bytes(MEBIBYTE)
    first = gzip.compress(noise + bytes(15 * MEBIBYTE))
    path = tmp_path_factory.mktemp("slow") / "scan.nii.gz"
    path.write_bytes(gzip.compress(header) + first + member * 255)
    return path


@pytest.fixture(name="decoding")
def decoding_(watched: Watched, slow_scan: Path) -> Iterator[tuple[int, list[BaseException]]]:
    """Yield the id of a process that decodes a slow scan, and a list that will hold its error once it has ended."""
    raised: list[BaseException] = []

    def decode() -> None:
        try:
            check_sandboxed(slow_scan, Limits(memory_bytes=4 << 30, seconds=59))
        except BaseException as error:  # noqa: BLE001 - handed over to the test
            raised.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    deadline = time.monotonic() + 20
    while not watched.started or not (watched.started[0].pid and _is_confined(watched.started[0].pid)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    pid = watched.started[0].pid
    assert pid is not None
    yield pid, raised
    while thread.is_alive():
        kill_decoders(watched)
        thread.join(0.05)


def kill_decoders(watched: Watched) -> None:
    """Kill every decoding process that is alive, also one that waits for the next file."""
    for process in list(watched.started):
        with suppress(ValueError):  # its thread has closed it
            if process.pid is not None:
                process.kill()


def limits_of(pid: int) -> dict[str, list[str]]:
    """Return the soft and hard limits of a process by name."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


def _is_confined(pid: int) -> bool:
    return limits_of(pid)["Max core file size"] == ["0", "0"]  # the last limit that is set
