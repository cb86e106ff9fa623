"""A state directory that an older version left behind is taken over: what was finished is served, what waited can be done.

`states/6673501.tar.xz` was written by `calibrant serve` of that commit, which was killed with one job finished, one
running and two waiting. The scans are drawn.
"""

import gzip
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest

from service.bundle.registry import DEFAULT_MODEL
from service.commands.predict import predict_here

STATES = Path(__file__).parent / "states"
ROUTE = "/v1/segmentations"


@pytest.fixture(name="state", params=sorted(path.name for path in STATES.iterdir()))
def state_(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return an unpacked state directory."""
    safe: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian's Python 3.11.2 has none
    with tarfile.open(STATES / request.param) as archive:
        archive.extractall(tmp_path / "state", **safe)  # noqa: S202 - our own archive
    return tmp_path / "state"


@pytest.fixture(name="http")
def http_(state: Path) -> Iterator[httpx.Client]:
    """Yield a client of a service of this version on that directory."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(state)}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        url = next(line.split()[4] for line in process.stdout if " listens at " in line)
        with httpx.Client(base_url=url, timeout=120) as http:
            yield http
        process.terminate()


def test_finished_jobs_are_served_and_waiting_ones_can_be_done(state: Path, http: httpx.Client, tmp_path: Path) -> None:
    """The finished job's files are those on disk; a waiting job's scan gets the mask of `calibrant predict`."""
    jobs = json.loads((state / "jobs.json").read_bytes())
    finished = f"{ROUTE}/{jobs['finished']}"
    assert http.get(finished).json()["state"] == "succeeded"
    for name, file in {"mask": "mask.nii.gz", "confidence": "confidence.nii.gz", "summary": "summary.json"}.items():
        stored = (state / "results" / jobs["finished"] / file).read_bytes()
        assert _unpacked(http.get(f"{finished}/{name}").content) == _unpacked(stored)

    found = {_mask_of(http, job) for job in jobs["queued"]}
    expected = []
    for number, scan in enumerate((state / "scans").glob("*/*")):
        (copy := tmp_path / f"{number}.nii.gz").write_bytes(scan.read_bytes())
        expected.append(
            np.asarray(
                nib.Nifti1Image.from_filename(predict_here(copy, tmp_path / "out", DEFAULT_MODEL).mask).dataobj
            ).tobytes()
        )
    assert found < set(expected)  # the fourth scan is the finished job's
    assert len(found) == len(jobs["queued"]) == 3


def _mask_of(http: httpx.Client, job: str) -> bytes:
    """Return the voxels of the mask of a waiting job's scan.

    The job names a version of the model that is no longer shipped, so it ends with that reason; its scan is kept, and a job
    of the version that is shipped takes it.
    """
    *_, last = (line for line in http.get(f"{ROUTE}/{job}/events").text.splitlines() if line.startswith("data: "))
    ended = json.loads(last.removeprefix("data: "))
    assert (ended["state"], ended["problem"]["type"]) == ("failed", "/problems/model-not-found")
    again = http.post(ROUTE, params={"scan": ended["scan"]}, headers={"Prefer": "wait=60"}).json()
    assert again["state"] == "succeeded", again
    return np.asarray(nib.Nifti1Image.from_bytes(_unpacked(http.get(again["links"]["mask"]).content)).dataobj).tobytes()


def _unpacked(content: bytes) -> bytes:
    """Return the content of a file that may be gzipped."""
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
