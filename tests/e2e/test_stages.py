"""`kill -9` of either process in the middle of each stage, and at the two edges of a job: one correct result each time.

Nothing is left to chance, and the service knows nothing of it: a `sitecustomize.py`, which every Python process of the
service imports, stops the process (SIGSTOP) right after the function of a point for which the test has made a file. The
process thus stands inside the stage, its work half done, when one of the two is killed. The stopped process is continued
when the next life of the service is at work: it comes late, and must harm nothing.
"""

import hashlib
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import httpx
import pytest

from service.result.files import MASK, RESULT
from service.schemas import Stage

POINTS = {
    "decode": ("service.intake.sandbox", "decode_scan"),  # in a process of its own
    "preprocess": ("service.pipeline.run", "preprocess"),
    "infer": ("service.pipeline.run", "infer_within_memory"),  # whatever the engine
    "calibrate": ("service.pipeline.run", "segment"),
    "encode": ("service.result.outputs", "encode_mask"),
    "store": ("service.result.store", "write_durably"),  # of several files the first
    "store, complete": ("service.pipeline.run", "complete"),
    "scan kept": ("service.storage.local", "Upload.keep"),
    "job committed": ("service.jobs.segmentation.queue", "SegmentationJobs.submit"),
    "result published": ("service.storage.local", "StateDirectory.publish"),
}
"""Where a process can be stopped: the module and the function after which it is."""

SITECUSTOMIZE = f"""
import importlib.machinery, operator, os, signal, sys, threading

POINTS = {POINTS!r}

class Finder:
    def find_spec(self, name, path=None, target=None):
        points = [(point, function) for point, (module, function) in POINTS.items() if module == name]
        spec = importlib.machinery.PathFinder.find_spec(name, path) if points else None
        if spec is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), [stop_after(module, *each) for each in points])
        return spec

def stop_after(module, point, function):
    *owner, name = function.split(".")
    owner = operator.attrgetter(".".join(owner))(module) if owner else module
    original = getattr(owner, name)

    def stopping(*arguments, **options):
        result = original(*arguments, **options)
        if os.path.exists(os.path.join(os.environ["STOPS"], point)):
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # sent to the process, it would let this thread go on
        return result

    setattr(owner, name, stopping)

sys.meta_path.insert(0, Finder())
"""

DEADLINE_S = 60
Victim = Literal["api", "worker"]
_T = TypeVar("_T")


def eventually(look: Callable[[], _T], what: str) -> _T:
    """Return what `look` returns as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.01)
    return found


class Process:
    """A process of the service, also after it was orphaned: its number is never taken for another one's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        """Say whether it has ended."""
        return bool(select.select([self._handle], [], [], 0)[0])

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def close(self) -> None:
        """Give the handle back."""
        os.close(self._handle)


class Service:
    """`calibrant serve` on one state directory, through all of its lives."""

    def __init__(self, folder: Path) -> None:
        self.state, self._stops, self._log = folder / "state", folder / "stops", folder / "serve.log"
        self._stops.mkdir()
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
        self._environment = os.environ | {
            "CALIBRANT_STATE_DIR": str(self.state),
            "PYTHONPATH": path,
            "STOPS": str(self._stops),
        }
        self.former: list[Process] = []
        self.start()

    def start(self) -> None:
        """Begin a life and wait until it is ready."""
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        with self._log.open("ab") as log:
            self.api = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment)
        assert self.api.stdout is not None
        self.url = next(line.split()[4] for line in self.api.stdout if " listens at " in line)
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)

    def stop_at(self, point: str) -> None:
        """Let the next process that comes to a point stop there."""
        (self._stops / point).touch()

    def await_stop(self) -> Process:
        """Return the process that has stopped at the point; others pass it from now on."""
        stopped = eventually(lambda: [pid for pid in family(self.api.pid) if _stat(pid)[0] == "T"], "a process to stop")
        for point in self._stops.iterdir():
            point.unlink()
        (pid,) = stopped
        self.former.append(Process(pid))
        return self.former[-1]

    def kill(self, victim: Victim) -> None:
        """Kill the API, and begin its next life, or kill the inference process."""
        worker = next(pid for pid in family(self.api.pid) if is_worker(pid))
        self._remember(family(self.api.pid if victim == "api" else worker))
        if victim == "api":
            self.end()
            self.start()
        else:
            os.kill(worker, signal.SIGKILL)

    def _remember(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                self.former.append(Process(pid))

    def forget_former(self) -> None:
        """Wait until every process that was killed, and its children, are gone."""
        for process in self.former:
            eventually(process.has_ended, f"process {process.pid} to end")
            process.close()
        self.former.clear()

    def end(self) -> None:
        """End this life as suddenly as a loss of power does."""
        self.http.close()
        self.api.kill()
        self.api.wait()
        assert self.api.stdout is not None
        self.api.stdout.close()

    def send(self, scan: Path, **headers: str) -> dict[str, Any]:
        """Send a scan and return its job."""
        answer = self.http.post("/v1/segmentations", content=scan.read_bytes(), headers=headers)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def job(self, identifier: str) -> dict[str, Any]:
        """Return a job as it stands."""
        return dict(self.http.get(f"/v1/segmentations/{identifier}").raise_for_status().json())

    def finish(self, identifier: str) -> dict[str, Any]:
        """Return a job that has finished."""
        states = ("succeeded", "failed", "cancelled")
        return eventually(lambda: job if (job := self.job(identifier))["state"] in states else {}, "the job to finish")

    def jobs(self) -> list[str]:
        """Return the id of every job that is listed."""
        jobs = self.http.get("/v1/segmentations", params={"limit": 200}).raise_for_status().json()["jobs"]
        return [job["id"] for job in jobs]

    def incoming(self) -> list[Path]:
        """Return the uploads in progress, or what is left of them."""
        return list((self.state / "incoming").iterdir())

    def close(self) -> None:
        """End what runs, whatever the tests have left behind."""
        self.end()
        for each in self.former:
            each.send(signal.SIGKILL)
        self.forget_former()


def family(root: int) -> list[int]:
    """Return the ids of a process and of all that descend from it."""
    parents = {int(path.name): _stat(int(path.name))[1] for path in Path("/proc").glob("[0-9]*")}
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def is_worker(pid: int) -> bool:
    """Return whether a process of the service is the inference process."""
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _stat(pid: int) -> tuple[str, int]:
    """Return the state of a process and its parent's id."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return state, int(parent)


@pytest.mark.parametrize(("module", "function"), POINTS.values(), ids=POINTS)
def test_every_place_to_stop_exists(module: str, function: str) -> None:
    """A function that has moved would leave a service that never starts a job."""
    assert callable(attrgetter(function)(import_module(module)))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield the service that the tests of this file kill one after the other."""
    with closing(Service(tmp_path_factory.mktemp("stages"))) as running:
        yield running


@pytest.fixture
def scan(hippocampus: Path) -> Path:
    """Return a real scan."""
    return hippocampus / "imagesTr" / "hippocampus_003.nii.gz"


@pytest.fixture(scope="module")
def undisturbed() -> dict[Path, dict[str, str]]:
    """Return where the results of undisturbed runs are kept: SHA-256 by name, by scan."""
    return {}


@pytest.fixture
def expected(service: Service, scan: Path, undisturbed: dict[Path, dict[str, str]]) -> dict[str, str]:
    """Return the SHA-256 of each file that an undisturbed run makes of the scan."""
    if scan not in undisturbed:
        job = service.finish(service.send(scan)["id"])
        assert (job["state"], job["attempts"]) == ("succeeded", 1)
        undisturbed[scan] = hashes_of(service, job["id"])
    return undisturbed[scan]


def hashes_of(service: Service, job: str) -> dict[str, str]:
    """Return the SHA-256 of a job's files, which must be those that its description names, and the mask that is served."""
    folder = service.state / "results" / job
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del found[RESULT]
    assert found == json.loads((folder / RESULT).read_bytes())["files"]
    mask = service.http.get(f"/v1/segmentations/{job}/mask").raise_for_status().content
    assert hashlib.sha256(mask).hexdigest() == found[MASK]
    return found


def check(service: Service, job: dict[str, Any], expected: dict[str, str], attempts: set[int]) -> None:
    """Demand one correct result of the job, and that nothing is left of what was killed."""
    assert job["state"] == "succeeded"
    assert job["attempts"] in attempts
    assert hashes_of(service, job["id"]) == expected
    listed = service.jobs()
    assert listed.count(job["id"]) == 1
    assert sorted(path.name for path in (service.state / "results").iterdir()) == sorted(listed)
    assert not list((service.state / "work").iterdir())
    assert not service.incoming()
    for kept in (service.state / "scans").glob("*/*"):
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == kept.name
    with closing(sqlite3.connect(service.state / "jobs.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM workflow_status").fetchone() == (len(listed),)
    service.forget_former()


@pytest.mark.parametrize("victim", get_args(Victim))
@pytest.mark.parametrize("point", [*(stage for stage in get_args(Stage) if stage != "locate"), "store, complete"])
def test_a_kill_in_a_stage(service: Service, scan: Path, expected: dict[str, str], point: str, victim: Victim) -> None:
    """The job is taken up again and has one result, the one of an undisturbed run; its second attempt is counted.

    No stage is called locate: the shipped bundle has no locator.
    """
    service.stop_at(point)
    job = service.send(scan)
    stopped = service.await_stop()
    standing = service.job(job["id"])
    assert (standing["state"], standing["stage"]) == ("running", point.partition(",")[0])
    assert is_worker(stopped.pid) or point == "decode"

    service.kill(victim)
    stopped.send(signal.SIGCONT)

    check(service, service.finish(job["id"]), expected, attempts={2})


def test_a_kill_between_result_and_record(service: Service, scan: Path, expected: dict[str, str]) -> None:
    """The API dies when the result has its place and nobody has written so down: it is found, and not computed again."""
    service.stop_at("result published")
    job = service.send(scan)
    assert service.await_stop().pid == service.api.pid
    result = service.state / "results" / job["id"] / RESULT
    written = result.stat()

    service.kill("api")

    check(service, service.finish(job["id"]), expected, attempts={1})
    assert (result.stat().st_ino, result.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


@pytest.mark.parametrize("point", ["upload in progress", "scan kept", "job committed"])
def test_a_kill_before_the_answer(service: Service, scan: Path, expected: dict[str, str], point: str) -> None:
    """The sender saw no 202 and sends again under its key: one job, whether there was one already or not."""
    before, content = service.jobs(), scan.read_bytes()
    if point == "upload in progress":
        connection = begin_to_send(service.url, content, len(content) // 2, key=point)
        eventually(lambda: any(each.stat().st_size for each in service.incoming()), "the upload to begin")
    else:
        service.stop_at(point)
        connection = begin_to_send(service.url, content, len(content), key=point)
        assert service.await_stop().pid == service.api.pid
    service.kill("api")
    with closing(connection), suppress(ConnectionResetError):
        assert connection.recv(1) == b""

    assert not service.incoming()
    kept = [job for job in service.jobs() if job not in before]
    assert len(kept) == (point == "job committed")
    again = [service.send(scan, **{"Idempotency-Key": point})["id"] for _ in range(2)]
    assert len({*kept, *again}) == 1
    # Once committed it may have been begun before the API stood still.
    check(service, service.finish(again[0]), expected, attempts={1, 2} if kept else {1})


def begin_to_send(url: str, content: bytes, count: int, key: str) -> socket.socket:
    """Send a request with so many bytes of its body, and return the connection without waiting for the answer."""
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port), timeout=DEADLINE_S)
    lines = [
        "POST /v1/segmentations HTTP/1.1",
        f"Host: {address.host}",
        f"Content-Length: {len(content)}",
        f"Idempotency-Key: {key}",
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + content[:count])
    return connection
