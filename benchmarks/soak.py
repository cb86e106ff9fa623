"""Keeps a service under a measured part of its load and counts: `python benchmarks/soak.py`, `make soak`.

First the capacity is measured: jobs an hour with a backlog. Then scans come at random moments at 80 % of it for an hour, and at
200 % for ten minutes; every accepted job must succeed, and every refusal must be 429 or 503 with Retry-After. Memory, file
descriptors, threads and disk are sampled; the slopes are those of straight lines. Each run is one entry in
docs/results/soak.json. `--minutes 2 --over 1` tries it, `--hours 8` soaks.
"""

import argparse
import datetime as dt
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from crash import Service, scans_in

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "soak.json"
ROUTE = "/v1/segmentations"
LOAD, OVERLOAD = 0.8, 2.0
BACKLOG = 12
"""Jobs from which the capacity is measured."""
SAMPLE_S = 5.0
POLL_S = 0.5
ERASE_AFTER = 50
"""Finished jobs that are kept; older ones are erased, as a retention policy does."""


@dataclass
class Phase:
    """What happened at one load."""

    accepted: dict[str, float] = field(default_factory=dict)
    """Moment at which each job was accepted, by id."""
    latencies: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)


class Soak:
    """A running service under load."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Start the service."""
        self.folder = folder
        self.random = random.Random(seed)
        self.service = Service(folder)
        self.service.await_ready()
        self.http = httpx.Client(base_url=self.service.url, timeout=60)
        scans = scans_in(Path(os.environ.get("CALIBRANT_DATA", "../shared/data")), folder)
        self.scans = [scan.read_bytes() for scan in scans]
        self.done: list[str] = []

    def capacity(self) -> float:
        """Return how many jobs a second the service ends with a backlog."""
        self.http.post(ROUTE, content=self.scans[0], headers={"Prefer": "wait=60"})
        started, phase = time.monotonic(), Phase()
        for _ in range(BACKLOG):
            self.send(phase)
        self.settle(phase)
        return BACKLOG / (time.monotonic() - started)

    def send(self, phase: Phase) -> str | None:
        """Send a scan, count what becomes of it, and return the id of its job if it was accepted."""
        answer = self.http.post(ROUTE, content=self.random.choice(self.scans))
        if answer.status_code in {200, 202}:
            job = str(answer.json()["id"])
            phase.accepted[job] = time.monotonic()
            return job
        told = "with" if "retry-after" in answer.headers else "without"
        phase.refusals[f"{answer.status_code} {told} Retry-After"] += 1
        return None

    def look(self, phase: Phase, open_jobs: dict[str, float]) -> None:
        """Count the jobs that have finished since the last look, and erase old ones."""
        for job in list(open_jobs)[:20]:
            state = self.http.get(f"{ROUTE}/{job}").json().get("state", "lost")
            if state not in {"queued", "running"}:
                del open_jobs[job]
                phase.states[state] += 1
                phase.latencies.append(time.monotonic() - phase.accepted[job])
                self.done.append(job)
        while len(self.done) > ERASE_AFTER:
            self.http.delete(f"{ROUTE}/{self.done.pop(0)}")

    def settle(self, phase: Phase) -> None:
        """Wait until every accepted job has finished."""
        open_jobs = dict(phase.accepted)
        while open_jobs:
            self.look(phase, open_jobs)
            time.sleep(0.05)

    def run(self, rate: float, seconds: float) -> Phase:
        """Send scans at random moments at a rate per second, then wait for what was accepted."""
        phase, started, open_jobs = Phase(), time.monotonic(), dict[str, float]()
        ended = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(phase, started, ended))
        sampler.start()
        due = looked = started
        while (now := time.monotonic()) < started + seconds:
            if now >= due:
                job = self.send(phase)
                if job is not None:
                    open_jobs[job] = phase.accepted[job]
                due += self.random.expovariate(rate)
            elif now - looked > POLL_S:
                looked = now
                self.look(phase, open_jobs)
            else:
                time.sleep(min(due - now, 0.02))
        ended.set()
        sampler.join()
        while open_jobs:
            self.look(phase, open_jobs)
            time.sleep(0.05)
        return phase

    def _sample(self, phase: Phase, started: float, ended: threading.Event) -> None:
        while not ended.wait(SAMPLE_S):
            pids = {"api": self.service.process.pid, "inference": self.service.inference()}
            sample = {"disk MiB": _disk_mib(self.folder / "state")}
            for name, pid in pids.items():
                if pid is not None:
                    sample |= {f"{name} {what}": value for what, value in _process(pid).items()}
            phase.samples.append((time.monotonic() - started, sample))

    def close(self) -> None:
        """End the service."""
        self.http.close()
        self.service.process.terminate()
        self.service.process.wait()


def _disk_mib(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # it was removed meanwhile
            continue
    return total / (1 << 20)


def _process(pid: int) -> dict[str, float]:
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {
            "memory MiB": int(status["VmRSS"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        }
    except (OSError, KeyError):  # it has ended
        return {}


def figures_of(phase: Phase) -> dict[str, Any]:
    """Return the figures of a phase; `bad` is the number of those that must not be."""
    latencies = np.array(phase.latencies) if phase.latencies else np.zeros(1)
    slopes = {}
    for name in sorted({name for _, sample in phase.samples for name in sample}):
        points = [(at / 3600, sample[name]) for at, sample in phase.samples if name in sample]
        half = points[len(points) // 4 :]  # the first quarter warms up
        if len(half) > 2:
            slope = statistics.linear_regression([at for at, _ in half], [v for _, v in half]).slope
            slopes[name] = {
                "median": round(statistics.median(v for _, v in half), 1),
                "per hour": round(slope, 2),
            }
    lost = len(phase.accepted) - phase.states["succeeded"]
    untold = sum(
        n for told, n in phase.refusals.items() if told not in {"429 with Retry-After", "503 with Retry-After"}
    )
    return {
        "accepted": len(phase.accepted),
        "succeeded": phase.states["succeeded"],
        "refused": dict(phase.refusals),
        "latency s": {f"p{p}": round(float(np.percentile(latencies, p)), 2) for p in (50, 95, 99)},
        "slopes": slopes,
        "bad": lost + untold,
    }


def main() -> int:
    """Run, print the figures as JSON, return 1 if a job was lost or a refusal did not say when to try again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="at 80 %% of the capacity")
    parser.add_argument("--hours", type=float, help="the same in hours")
    parser.add_argument("--over", type=float, default=10, help="minutes at 200 %%")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="add the figures to docs/results/soak.json")
    arguments = parser.parse_args()
    minutes = arguments.hours * 60 if arguments.hours else arguments.minutes
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        soak = Soak(Path(folder), arguments.seed)
        try:
            capacity = soak.capacity()
            phases = {
                "80 %": figures_of(soak.run(LOAD * capacity, minutes * 60)),
                "200 %": figures_of(soak.run(OVERLOAD * capacity, arguments.over * 60)),
            }
        finally:
            soak.close()
    entry = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "seed": arguments.seed,
        "minutes": {"80 %": minutes, "200 %": arguments.over},
        "capacity in jobs an hour": round(3600 * capacity),
        **phases,
    }
    print(json.dumps(entry, indent=2))
    if arguments.write:
        runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        RESULTS.write_text(json.dumps([*runs, entry], indent=2) + "\n")
    return int(sum(phase["bad"] for phase in phases.values()) > 0)


if __name__ == "__main__":
    sys.exit(main())
