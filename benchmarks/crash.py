"""Kills the service under load and counts what is lost: `python benchmarks/crash.py --kills 100 --points 2 --write`.

Clients send scans continuously, each with an idempotency key that they repeat until they get an answer. Meanwhile the API or
the inference process is killed (-9), terminated (TERM) or stopped and continued (STOP, CONT) at random moments, including
startup. Half of the kills wait until a case is computed; `--points N` adds N runs of the API in which it kills itself at each
named point (`benchmarks/failing_service.py`), while clients also cancel and erase. At the end every acknowledged job must have succeeded with exactly one result, byte for byte that of an undisturbed
run, unless its client has cancelled or erased it: then nothing of it may be left. `--write` adds the figures to
docs/results/crash.json, which gathers the kills of all runs. kill -9 keeps the page cache, so this does not cover a loss of power.
"""

import argparse
import datetime as dt
import gzip
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
from failing_service import NAMES

ROUTE = "/v1/segmentations"
CLIENTS = 3
MAX_PENDING = 20
"""Waiting jobs at which the clients pause, so that the backlog stays finite."""
CASE_DEADLINE_S = 5
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "crash.json"
POINT_CHANCE = 0.2
"""Probability with which a process kills itself each time that it passes its point."""
POINT_S = 30.0
"""Most seconds for which a process that should kill itself is waited for."""
POINTS_BACKLOG = 5
"""Times the pending jobs at which clients pause while points are passed: every start lets some uploads pass."""
WITHDRAWN = 0.15
"""Part of the jobs that their clients cancel or erase while points are passed."""
COMPUTING_S = 5.0
"""Most seconds that a kill waits for a case to be computed."""
STOPPED_S = (0.5, 8.0)
"""Range of the time for which a child is stopped; the deadline lies within it."""
BETWEEN_FAULTS_S = (0.05, 8.0)
SETTLE_S = 600
LOG_CHARACTERS = 20_000
"""Of the service's log, printed if anything was lost."""
FAULTS = {"kill api": 5, "kill inference": 3, "stop inference": 1, "terminate api": 1}
"""Relative frequency of each fault."""


@dataclass
class Tally:
    """Counts of acknowledged jobs, refusals and faults."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    """Name of the scan, by job id."""
    duplicate_ids: int = 0
    refused: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    withdraws: bool = False
    """Whether clients cancel and erase jobs."""
    computing: int = 0
    """Kills while a case was computed."""
    cancelled: set[str] = field(default_factory=set)
    erased: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Service:
    """`calibrant serve` as a child, started again whenever it ends."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.log = (state / "serve.log").open("ab")
        self.url = ""
        self.start()

    def start(self, point: str | None = None) -> None:
        """Start the process, which may kill itself at a named point; `await_ready` waits for it."""
        armed = {"CRASH_POINT": point, "CRASH_CHANCE": str(POINT_CHANCE)} if point else {}
        environment = (
            os.environ
            | armed
            | {
                "CALIBRANT_STATE_DIR": str(self.state / "state"),
                "CALIBRANT_CASE_DEADLINE_S": str(CASE_DEADLINE_S),
            }
        )
        program = [str(Path(__file__).with_name("failing_service.py"))] if point else ["-m", "service"]
        command = [sys.executable, *program, "serve", "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)

    def await_ready(self) -> None:
        """Wait for the line with the service's address; the process may be killed meanwhile."""
        for line in self.process.stdout or ():
            if " listens at " in line:
                self.url = line.split()[4]
                return

    def inference(self) -> int | None:
        """Return the process id of the inference child, if there is one."""
        # Linux keeps a list for each thread, and the one that replaces a child is not the main one.
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for pid in [int(p) for one in children for p in _read(one).split()]:
            if "spawn_main" in _read(Path(f"/proc/{pid}/cmdline")):
                return pid
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def scans_in(folder: Path, work: Path) -> list[Path]:
    """Return up to eight real hippocampus scans, or eight synthetic ones if the data set is absent."""
    real = sorted((folder / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[:8]
    if real:
        return real
    synthetic = []
    for seed in range(8):
        array = np.random.default_rng(seed).normal(size=(35, 50, 36)).astype(np.float32)
        synthetic.append(work / f"synthetic_{seed}.nii.gz")
        nib.save(nib.Nifti1Image(array, np.eye(4)), synthetic[-1])
    return synthetic


def send(service: Service, scan: Path, key: str, tally: Tally, stop: threading.Event) -> None:
    """Send a scan until it is acknowledged, then once more with the same key: the job must be the same."""
    seen: list[str] = []
    while len(seen) < 2 and not stop.is_set():
        try:
            answer = httpx.post(
                f"{service.url}{ROUTE}",
                content=scan.read_bytes(),
                headers={"Idempotency-Key": key, "Content-Type": "application/octet-stream"},
                timeout=10,
            )
        except (httpx.TransportError, httpx.UnsupportedProtocol):
            time.sleep(0.1)
            continue
        if answer.status_code in {429, 503} and "retry-after" in answer.headers:
            time.sleep(0.5)
            continue
        if answer.is_error:
            with tally.lock:
                tally.refused += 1
            return
        seen.append(answer.json()["id"])
        with tally.lock:
            tally.acknowledged[seen[-1]] = scan.name
    with tally.lock:
        tally.duplicate_ids += len(set(seen)) > 1


def withdraw(service: Service, job: str, tally: Tally, *, erase: bool) -> None:
    """Cancel or erase a job once; if no answer comes, it may or may not have happened."""
    with tally.lock:
        (tally.erased if erase else tally.cancelled).add(job)
    here = f"{service.url}{ROUTE}/{job}"
    for _ in range(200):
        try:
            answer = httpx.delete(here, timeout=10) if erase else httpx.post(f"{here}/cancel", timeout=10)
        except (httpx.TransportError, httpx.UnsupportedProtocol):
            time.sleep(0.1)
            here = f"{service.url}{ROUTE}/{job}"
            continue
        if answer.status_code < 500:
            return


def load(service: Service, scans: list[Path], tally: Tally, stop: threading.Event, seed: int) -> None:
    """Send scans until told to stop, pausing while too many jobs wait; withdraw some if points are to be passed."""
    generator, number = random.Random(seed), 0
    while not stop.is_set():
        number += 1
        before = set(tally.acknowledged)
        send(service, generator.choice(scans), f"client-{seed}-{number}", tally, stop)
        for job in sorted(set(tally.acknowledged) - before)[:1] if tally.withdraws else []:
            if generator.random() < WITHDRAWN:
                withdraw(service, job, tally, erase=generator.random() < 0.5)
        while not stop.is_set() and pending(service, tally) > MAX_PENDING * (POINTS_BACKLOG if tally.withdraws else 1):
            time.sleep(0.2)


def pending(service: Service, tally: Tally) -> int:
    """Return how many acknowledged jobs have no result yet."""
    return len(tally.acknowledged) - sum(1 for _ in (service.state / "state" / "results").glob("*"))


def disturb(service: Service, fault: str, generator: random.Random) -> bool:
    """Inflict one fault; return whether there was a process to inflict it on."""
    if fault == "kill api":
        service.process.kill()
    elif fault == "terminate api":
        service.process.terminate()
    else:
        pid = service.inference()
        if pid is None:
            return False
        try:
            if fault == "kill inference":
                os.kill(pid, signal.SIGKILL)
                return True
            os.kill(pid, signal.SIGSTOP)
            time.sleep(generator.uniform(*STOPPED_S))
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return fault == "stop inference"
        return True
    service.process.wait()
    service.start()
    threading.Thread(target=service.await_ready, daemon=True).start()
    return True


def computes(service: Service) -> bool:
    """Return whether a case is being computed."""
    try:
        listed = httpx.get(f"{service.url}{ROUTE}", params={"state": "running"}, timeout=2).json()["jobs"]
    except (httpx.HTTPError, httpx.UnsupportedProtocol, KeyError, ValueError):
        return False
    return any(job["stage"] for job in listed)


def await_computing(service: Service) -> bool:
    """Wait for a moment at which a case is computed; return whether there was one."""
    deadline = time.monotonic() + COMPUTING_S
    while time.monotonic() < deadline:
        if computes(service):
            return True
        time.sleep(0.01)
    return False


def disturb_at_points(service: Service, tally: Tally, rounds: int) -> None:
    """Let the API kill itself at each named point, so many times."""
    tally.withdraws = True
    for point in NAMES * rounds:
        service.process.terminate()
        service.process.wait()
        service.start(point)
        service.await_ready()  # or dead
        try:
            service.process.wait(POINT_S)
        except subprocess.TimeoutExpired:
            print(f"not passed in {POINT_S:.0f} s: {point}", file=sys.stderr)
            continue
        name = f"kill at: {point}"
        tally.faults[name] = tally.faults.get(name, 0) + 1
        print(f"{name}; {len(tally.acknowledged)} acknowledged", file=sys.stderr)
        service.start()
        threading.Thread(target=service.await_ready, daemon=True).start()
    if service.process.poll() is None:
        service.process.terminate()
        service.process.wait()
        service.start()
        threading.Thread(target=service.await_ready, daemon=True).start()
    tally.withdraws = False


def expected_masks(service: Service, scans: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of each scan's mask from an undisturbed run."""
    masks = {}
    for scan in scans:
        headers = {"Prefer": "wait=60", "Content-Type": "application/octet-stream"}
        job = httpx.post(f"{service.url}/v1/segmentations", content=scan.read_bytes(), headers=headers, timeout=90)
        mask = httpx.get(f"{service.url}{job.json()['links']['mask']}")
        masks[scan.name] = hashlib.sha256(mask.content).hexdigest()
    return masks


def settle(service: Service, tally: Tally) -> dict[str, str]:
    """Wait until every acknowledged job has finished, and return their final states."""
    states: dict[str, str] = {}
    deadline = time.monotonic() + SETTLE_S
    while len(states) < len(tally.acknowledged) and time.monotonic() < deadline:
        for job in [job for job in tally.acknowledged if job not in states]:
            if job in tally.erased:
                states[job] = "erased"
                continue
            answer = httpx.get(f"{service.url}/v1/segmentations/{job}", timeout=30)
            state = answer.json()["state"] if answer.status_code == 200 else f"http {answer.status_code}"
            if state not in ("queued", "running"):
                problem = answer.json().get("problem") or {}
                states[job] = " ".join([state, *filter(None, [problem.get("type")])])
        time.sleep(0.5)
    return states


def torn(result: Path) -> bool:
    """Return whether a result's files differ from those that its `result.json` lists."""
    try:
        files = json.loads((result / "result.json").read_bytes())["files"]
        for name in files:
            if name.endswith(".gz"):
                gzip.decompress((result / name).read_bytes())
        return any(hashlib.sha256((result / n).read_bytes()).hexdigest() != h for n, h in files.items())
    except (OSError, ValueError, KeyError):
        return True


def verdict(service: Service, tally: Tally, expected: dict[str, str], states: dict[str, str]) -> dict[str, Any]:
    """Return all figures; `bad` is the sum of those that must be 0."""
    results = service.state / "state" / "results"
    kept = {job: scan for job, scan in tally.acknowledged.items() if job not in tally.erased | tally.cancelled}
    wrong = 0
    for job, scan in kept.items():
        mask = results / job / "mask.nii.gz"
        wrong += not mask.is_file() or hashlib.sha256(mask.read_bytes()).hexdigest() != expected[scan]
    with sqlite3.connect(service.state / "state" / "jobs.sqlite") as database:
        integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
        rows = dict(database.execute("SELECT workflow_uuid, status FROM workflow_status").fetchall())
    must_be_zero = {
        "acknowledged jobs lost": sum(job not in rows for job in set(kept) | tally.cancelled),
        "acknowledged jobs not succeeded": sum(states.get(job) != "succeeded" for job in kept),
        "cancelled jobs with another end": sum(
            states.get(job) not in {"cancelled", "succeeded"} for job in tally.cancelled
        ),
        "cancelled jobs with a result": sum(
            states.get(job) == "cancelled" and (results / job).exists() for job in tally.cancelled
        ),
        "erased jobs that are left": sum(job in rows or (results / job).exists() for job in tally.erased),
        "keys with two jobs": tally.duplicate_ids,
        "results torn": sum(torn(result) for result in results.iterdir()),
        "results missing or unlike an undisturbed run's": wrong,
        "results without a job": sum(result.name not in rows for result in results.iterdir()),
        "attempts left behind": sum(1 for _ in (service.state / "state" / "work").iterdir()),
        "database damaged": int(integrity != "ok"),
        "uploads refused": tally.refused,
    }
    return {
        "faults": dict(sorted(tally.faults.items())),
        "states": dict(sorted(Counter(states.values()).items())),
        "kills": sum(n for fault, n in tally.faults.items() if fault.startswith("kill")),
        "kills while a case was computed": tally.computing,
        "acknowledged jobs": len(tally.acknowledged),
        "cancelled": len(tally.cancelled),
        "erased": len(tally.erased),
        **must_be_zero,
        "bad": sum(must_be_zero.values()),
    }


def disturb_often(service: Service, tally: Tally, kills: int, generator: random.Random) -> None:
    """Inflict faults at random moments until this many processes were killed."""
    started = time.monotonic()
    while sum(n for fault, n in tally.faults.items() if fault.startswith("kill")) < kills:
        time.sleep(generator.uniform(*BETWEEN_FAULTS_S))
        fault = generator.choices(list(FAULTS), list(FAULTS.values()))[0]
        computing = generator.random() < 0.5 and await_computing(service)
        if disturb(service, fault, generator):
            tally.faults[fault] = tally.faults.get(fault, 0) + 1
            tally.computing += computing and fault.startswith("kill")
            line = f"{time.monotonic() - started:6.0f} s  {fault}; {len(tally.acknowledged)} acknowledged"
            print(line, file=sys.stderr)


def main() -> int:
    """Run, print the figures as JSON, return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kill -9 to inflict; other faults come on top")
    parser.add_argument("--points", type=int, default=0, help="times that the API kills itself at each named point")
    parser.add_argument("--seed", type=int, help="by default the number of earlier runs in docs/results/crash.json")
    parser.add_argument("--write", action="store_true", help="add the figures to docs/results/crash.json")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if arguments.seed is None:
        arguments.seed = len(runs)
    generator, tally, stop = random.Random(arguments.seed), Tally(), threading.Event()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        service = Service(Path(folder))
        service.await_ready()
        scans = scans_in(Path(os.environ.get("CALIBRANT_DATA", "../shared/data")), Path(folder))
        expected = expected_masks(service, scans)
        clients = [
            threading.Thread(target=load, args=(service, scans, tally, stop, seed), daemon=True)
            for seed in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        disturb_often(service, tally, arguments.kills, generator)
        disturb_at_points(service, tally, arguments.points)
        while not service.url or not _answers(service):
            time.sleep(0.2)
        stop.set()
        for client in clients:
            client.join()
        states = settle(service, tally)
        time.sleep(1)
        figures = verdict(service, tally, expected, states)
        service.process.terminate()
        service.process.wait()
        if figures["bad"]:  # the log holds nothing that was sent, and says why a process died
            print(_read(Path(folder) / "serve.log")[-LOG_CHARACTERS:], file=sys.stderr)
    figures = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - started),
        **figures,
    }
    print(json.dumps(figures, indent=2))
    runs.append(figures)
    if arguments.write:
        RESULTS.write_text(json.dumps(runs, indent=2) + "\n")
    kills, bad = (sum(run[name] for run in runs) for name in ("kills", "bad"))
    print(
        f"All runs: {kills} kills, bad: {bad}. 0 of {kills} would bound the loss per kill at {3 / kills:.2%} (95 %, rule of three)."
    )
    return int(figures["bad"] > 0)


def _answers(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/v2/health/live", timeout=2).is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
