"""Measures what the service adds to the pipeline: latency, throughput, an upload, memory: `python benchmarks/serving.py`.

Run it after `benchmarks/pipeline.py`, whose bundles and measurements it uses. The service is a child process on a free port of
this machine with one thread for inference. (A script named `service.py` would hide the package from the others in this folder.)
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
from page import PAGE, publish, table
from pipeline import HERE, PLANS, STATE, as_served, out_of
from subjects import CACHE, Subject

from service.bundle.description import describe_bundle

CLIENTS, JOBS = 8, 40
ALONE = 10
"""Passes of the pipeline alone before the eight clients, and again after them; the first of each does not count."""
UPLOAD_SHAPE = (512, 512, 477)
"""500 MB of float32."""
WAIT_S = 60
SAMPLE_S = 0.05


@dataclass(frozen=True)
class Service:
    """A running service."""

    client: httpx.Client
    """Shared by all requests: creating one loads an HTTPS library, whose time is not the service's."""
    pid: int

    def segment(self, scan: Path, model: str) -> float:
        """Send a scan, wait for its result and fetch the mask; return the total seconds."""
        started = time.perf_counter()
        headers = {"Prefer": f"wait={WAIT_S}", "Content-Type": "application/octet-stream"}
        answer = self.client.post(
            "/v1/segmentations", params={"model": model}, content=scan.read_bytes(), headers=headers
        )
        job = answer.raise_for_status().json()
        while job["state"] not in ("succeeded", "failed"):
            time.sleep(SAMPLE_S)
            job = self.client.get(f"/v1/segmentations/{job['id']}").raise_for_status().json()
        if job["state"] == "failed":
            raise SystemExit(str(job))
        self.client.get(job["links"]["mask"]).raise_for_status()
        return time.perf_counter() - started

    def memory_mb(self) -> float:
        """Return the resident memory of the API's process alone, in MiB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def running(device: str = "cpu", threads: int = 1) -> Iterator[Service]:
    """Yield a service with a fresh state directory that holds this machine's measurements.

    Args:
        device: CALIBRANT_DEVICE.
        threads: of each process that computes.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        shutil.copytree(STATE, state)
        (CACHE / "bundles").mkdir(exist_ok=True)
        environment = os.environ | {
            "CALIBRANT_STATE_DIR": str(state),
            "CALIBRANT_BUNDLE_DIR": str(CACHE / "bundles"),
            "CALIBRANT_DEVICE": device,
            "OMP_NUM_THREADS": str(threads),
        }
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as process:
            url = next(line.split()[4] for line in process.stdout or () if " listens at " in line)
            try:
                with httpx.Client(base_url=url, timeout=600) as client:
                    yield Service(client, process.pid)
            finally:
                process.terminate()


def pipeline_seconds(key: str, subject: Subject, repeats: int) -> list[float]:
    """Return the seconds of the pipeline alone, in a fresh process with the engine that serves, after a first case."""
    command = [sys.executable, str(HERE / "passes.py"), "auto", str(subject.scan), str(subject.bundle)]
    command += [str(out_of(key, "auto")), str(repeats), "1", str(STATE)]
    printed = subprocess.run(command, capture_output=True, text=True, env=as_served(1), check=True).stdout
    passes = [json.loads(line) for line in printed.splitlines() if line.startswith('{"seconds"')]
    return [one["total"] for one in passes[1:]]


def latency_row(service: Service, key: str, subject: Subject, rounds: int, repeats: int) -> list[str]:
    """Return the row of one client's latency for a subject, and of the service's share."""
    model = describe_bundle(subject.bundle).config.name
    service.segment(subject.scan, model)  # the first case loads the bundle
    alone, served = [], []
    for _ in range(rounds):
        alone += pipeline_seconds(key, subject, 1 + repeats)
        served += [service.segment(subject.scan, model) for _ in range(repeats)]
    pipeline, latency = statistics.median(alone), statistics.median(served)
    allowed = 1.1 * pipeline + 0.15
    row = [f"{pipeline:.3f}", f"{latency:.3f}", f"{1000 * (latency - pipeline):.0f}", f"{allowed:.3f}"]
    return [PLANS[key].title, *row]


def throughput_row(service: Service, key: str, subject: Subject, jobs: int) -> list[str]:
    """Return the row of cases per second with eight clients and of the pipeline alone, and of the API's memory."""
    model = describe_bundle(subject.bundle).config.name
    before = service.memory_mb()
    passes = pipeline_seconds(key, subject, ALONE)
    with watched(service) as peak, ThreadPoolExecutor(CLIENTS) as clients:
        started = time.perf_counter()
        list(clients.map(lambda _n: service.segment(subject.scan, model), range(jobs)))
        rate = jobs / (time.perf_counter() - started)
    passes += pipeline_seconds(key, subject, ALONE)
    alone = 1 / statistics.median(passes)
    row = [f"{rate:.2f}", f"{alone:.2f}", f"{rate / alone:.0%}", f"{before:.0f}", f"{peak() - before:+.0f}"]
    return [PLANS[key].title, *row]


def upload_row(service: Service) -> list[str]:
    """Return the row of an upload of 500 MB: its time, and the growth of the API's memory."""
    file = CACHE / "upload.nii"
    if not file.exists():
        array = np.random.default_rng(0).normal(size=UPLOAD_SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.eye(4)), file)
    before = service.memory_mb()
    with watched(service) as peak, file.open("rb") as body:
        started = time.perf_counter()
        headers = {"Content-Type": "application/octet-stream"}
        service.client.post("/v1/scans", content=body, headers=headers).raise_for_status()
        seconds = time.perf_counter() - started
    size = file.stat().st_size / 1e6
    return [f"{size:.0f} MB", f"{seconds:.2f}", f"{size / seconds:.0f}", f"{before:.0f}", f"{peak() - before:+.0f}"]


@contextmanager
def watched(service: Service) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the API's largest memory since the start, in MiB."""
    samples, done = [service.memory_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            samples.append(service.memory_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(samples)
    finally:
        done.set()
        thread.join()


def main() -> None:
    """Print the tables, and write them to the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CALIBRANT_DATA", "../shared/data")))
    parser.add_argument("--subjects", nargs="+", choices=PLANS, default=["hippocampus", "cardiac", "ct4"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--write", action="store_true", help="write the tables to docs/results/speed.md")
    arguments = parser.parse_args()
    page = PAGE if arguments.write else None
    subjects = {key: PLANS[key].subject(arguments.data) for key in arguments.subjects}
    with running() as service:
        rows = [
            latency_row(service, key, subject, 1 if key.startswith("ct") else arguments.rounds, 2)
            for key, subject in subjects.items()
        ]
        head = ["one client", "pipeline, s", "service, s", "more, ms", "10 % + 150 ms would be, s"]
        publish("Service: latency", table(head, rows), page)
        rows = [
            throughput_row(service, key, subject, arguments.jobs)
            for key, subject in subjects.items()
            if not key.startswith("ct")
        ]
        head = ["eight clients", "cases/s", "pipeline, cases/s", "of it", "API before, MiB", "grew by, MiB"]
        publish("Service: throughput", table(head, rows), page)
        head = ["upload", "s", "MB/s", "API before, MiB", "grew by, MiB"]
        publish("Service: a large upload", table(head, [upload_row(service)]), page)


if __name__ == "__main__":
    main()
