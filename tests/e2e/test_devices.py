"""A service with two devices: it goes on when the process of either dies, and its jobs with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

Children = Callable[[], list[int]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[httpx.Client, Children]]:
    """Yield a client of a service with two processes on the CPU, and the function that returns their ids."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(tmp_path / "state"), "CALIBRANT_DEVICE": "cpu*2"}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = next(line.split()[4] for line in process.stdout if " listens at " in line)

        def children() -> list[int]:
            # Linux keeps a list for each thread, and the one that replaces a child is not the main one.
            lists = Path(f"/proc/{process.pid}/task").glob("*/children")
            found = [pid for one in lists for pid in one.read_text().split()]
            return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                yield client, children
        finally:
            process.terminate()


@pytest.mark.timeout(300)
def test_the_service_survives_the_kill_of_either_child(
    service: tuple[httpx.Client, Children], tmp_path: Path, write_nifti: Callable[..., None]
) -> None:
    """Two jobs run at once; after kill -9 of each child in turn every job succeeds, with one and the same mask."""
    client, children = service
    fine = np.diag([0.25, 0.25, 0.25, 1])
    write_nifti(tmp_path / "scan.nii", np.random.default_rng(0).integers(0, 200, (180, 240, 200), np.uint8), fine)
    content = (tmp_path / "scan.nii").read_bytes()
    jobs = [client.post("/v1/segmentations", content=content).json() for _ in range(4)]

    def states() -> list[str]:
        return [client.get(job["links"]["self"]).json()["state"] for job in jobs]

    killed: list[int] = []
    for _ in range(2):
        _eventually(lambda: states().count("running") == 2 or states().count("succeeded") >= 3)
        victim = next(pid for pid in children() if pid not in killed)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
    _eventually(lambda: set(states()) == {"succeeded"})

    masks = {client.get(job["links"]["self"] + "/mask").content for job in jobs}
    assert len(masks) == 1
    _eventually(lambda: client.get("/v2/health/ready").is_success)
    assert len(children()) == 2
    assert not set(children()) & set(killed)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
