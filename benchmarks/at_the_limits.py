"""What a service does at its limits, in figures: `python benchmarks/at_the_limits.py`, or some rows: `... at_the_limits.py disk locks`.

Each row starts a service of its own, takes something away from it - space, its database, its directory, its process, the right
time, quick clients, a short queue - and measures what a client sees, and how long the service takes to recover. Figures go to
docs/results/limits.json, one entry for each row; a row that is there is not run again unless it is named. A row that needs
what this machine does not have (the superuser for a small disk, libfaketime for the clock) says so.
"""

import argparse
import datetime as dt
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
from crash import Service, scans_in

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "limits.json"
ROUTE = "/v1/segmentations"
PATIENCE_S = 120
DISK_MIB = 192
QUEUED = 10_000
SLOW_CLIENTS = 200
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")

Figures = dict[str, Any]


class Missing(Exception):
    """The machine lacks what a row needs."""


class Probe:
    """A running service and a client of it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """Start the service and wait until it is ready; settings are environment variables."""
        self.folder = folder
        before = dict(os.environ)
        os.environ.update(settings)
        self.service = Service(folder)
        os.environ.clear()
        os.environ.update(before)
        self.service.await_ready()
        self.http = httpx.Client(base_url=self.service.url, timeout=PATIENCE_S)
        self.scan = scans_in(Path(os.environ.get("CALIBRANT_DATA", "../shared/data")), folder)[0].read_bytes()
        self.seconds_until(lambda: self.ready)

    @property
    def ready(self) -> bool:
        """Whether the service says that it is."""
        return self.http.get("/v2/health/ready").is_success

    def post(self, **headers: str) -> httpx.Response:
        """Send a scan."""
        return self.http.post(ROUTE, content=self.scan, headers=headers)

    def state(self, job: str) -> str:
        """Return the state of a job."""
        return str(self.http.get(f"{ROUTE}/{job}").json().get("state"))

    def finished(self, job: str) -> str:
        """Return the state of a job once it has finished."""
        self.seconds_until(lambda: self.state(job) not in {"queued", "running"})
        return self.state(job)

    def seconds_until(self, holds: Callable[[], bool]) -> float:
        """Return the seconds until something holds.

        Raises:
            TimeoutError: it took too long.
        """
        started = time.monotonic()
        while not holds():
            if time.monotonic() - started > PATIENCE_S:
                raise TimeoutError
            time.sleep(0.02)
        return round(time.monotonic() - started, 2)

    def close(self) -> None:
        """End the service."""
        self.http.close()
        self.service.process.terminate()
        self.service.process.wait()


@contextmanager
def probe(folder: Path | None = None, **settings: str) -> Iterator[Probe]:
    """Yield a service in a folder, by default a new one."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as new:
        running = Probe(folder or Path(new), **settings)
        try:
            yield running
        finally:
            running.close()


def answer_of(response: httpx.Response) -> Figures:
    """Return what a client sees."""
    return {
        "status": response.status_code,
        "retry-after": response.headers.get("retry-after"),
        "seconds": round(response.elapsed.total_seconds(), 3),
    }


def disk() -> Figures:
    """Fill the disk of the state directory while a job is computed."""
    with tempfile.TemporaryDirectory() as mount:
        small = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", mount]
        if os.getuid() != 0 or subprocess.run(small, capture_output=True, check=False).returncode:
            msg = "only the superuser may mount a small disk"
            raise Missing(msg)
        try:
            with probe(Path(mount)) as running:
                return _full(running, Path(mount) / "filler")
        finally:
            subprocess.run(["/usr/bin/umount", "--lazy", mount], check=True)


def _full(running: Probe, filler: Path) -> Figures:
    erased = running.post(Prefer="wait=60").json()["id"]
    jobs = [running.post().json()["id"] for _ in range(3)]
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    told = running.seconds_until(lambda: not running.ready)
    refused = running.post()
    deleted = running.http.delete(f"{ROUTE}/{erased}")
    time.sleep(5)
    failed = sum(running.state(job) in {"failed", "cancelled"} for job in jobs)
    filler.unlink()
    recovered = running.seconds_until(lambda: running.ready)
    states = [running.finished(job) for job in jobs]
    return {
        "not ready after s": told,
        "upload": answer_of(refused),
        "erasing": answer_of(deleted),
        "acknowledged jobs": len(jobs),
        "failed meanwhile": failed,
        "succeeded afterwards": states.count("succeeded"),
        "ready again after s": recovered,
        "bad": failed + states.count("failed") + (refused.status_code != 507) + (deleted.status_code != 204),
    }


def locks() -> Figures:
    """Lock the database from another program for 20 s, while a job ends."""
    with probe() as running:
        job = running.post().json()["id"]
        with closing(sqlite3.connect(running.folder / "state" / "jobs.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            refused, again = running.post(), running.post()
            told = not running.ready
            read = running.http.get(f"{ROUTE}/{job}")
            time.sleep(20)
            other.execute("ROLLBACK")
        recovered = running.seconds_until(lambda: running.ready)
        state = running.finished(job)
        return {
            "upload": answer_of(refused),
            "next upload": answer_of(again),
            "reading": answer_of(read),
            "ready again after s": recovered,
            "the job that ended meanwhile": state,
            "bad": (refused.status_code != 503) + (not told) + (state != "succeeded") + (not read.is_success),
        }


def directory() -> Figures:
    """Take a folder of the state directory away for a while."""
    with probe() as running:
        incoming, away = running.folder / "state" / "incoming", running.folder / "away"
        incoming.rename(away)
        told = running.seconds_until(lambda: not running.ready)
        refused = running.post()
        away.rename(incoming)
        recovered = running.seconds_until(lambda: running.ready)
        state = running.finished(running.post().json()["id"])
        return {
            "not ready after s": told,
            "upload": answer_of(refused),
            "ready again after s": recovered,
            "next job": state,
            "bad": (refused.status_code != 503) + (state != "succeeded"),
        }


def memory() -> Figures:
    """Kill the inference process twice in one case, as the kernel does when memory runs out."""
    with probe() as running:
        job = running.post().json()["id"]
        kills = 0
        while kills < 2:
            running.seconds_until(lambda: running.state(job) == "running")
            pid = running.service.inference()
            if pid is None:
                continue
            os.kill(pid, 9)
            kills += 1
            running.seconds_until(lambda dead=pid: running.service.inference() not in {dead, None})  # type: ignore[misc]
        started = time.monotonic()
        state = running.finished(job)
        return {
            "kills": kills,
            "the job": state,
            "seconds after the second kill": round(time.monotonic() - started, 1),
            "answers meanwhile": answer_of(running.http.get("/v1/models")),
            "bad": int(state != "succeeded"),
        }


def clock() -> Figures:
    """Run with a clock that is an hour late, then on the same directory with one that is an hour early."""
    if not FAKETIME.exists():
        msg = "libfaketime is absent: apt-get install libfaketime"
        raise Missing(msg)
    states = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for offset in ("-3600", "+3600", "-3600"):
            with probe(
                Path(folder), LD_PRELOAD=str(FAKETIME), FAKETIME=offset, FAKETIME_DONT_FAKE_MONOTONIC="1"
            ) as running:
                jobs = [running.post().json()["id"] for _ in range(2)]
                states += [running.finished(jobs[0])]
                running.service.process.kill()
                running.service.process.wait()
        with probe(Path(folder)) as running:
            listed = running.http.get(ROUTE).json()["jobs"]
            states += [running.finished(job["id"]) for job in listed]
    return {
        "states": sorted(set(states)),
        "jobs": len(listed),
        "bad": (len(listed) != 6) + (set(states) != {"succeeded"}),
    }


def queue() -> Figures:
    """Fill the queue, and measure what clients wait for."""
    with probe() as running:
        jobs = [running.post().json() for _ in range(2)]
        like, scan = jobs[1]["id"], jobs[0]["scan"]

        def post_stored() -> httpx.Response:
            return running.http.post(ROUTE, params={"scan": scan})

        empty = {"POST": _seconds(running.post), "POST of a stored scan": _seconds(post_stored)}
        _copy(running.folder / "state" / "jobs.sqlite", like)
        time.sleep(1.5)
        figures: Figures = {"queued": QUEUED, "with a short queue": empty, "bad": 0}
        asked: list[tuple[str, Callable[[], httpx.Response], float | None]] = [
            ("list of 200", lambda: running.http.get(ROUTE, params={"limit": 200}), 0.3),
            ("POST", running.post, None),
            ("POST of a stored scan", post_stored, 0.03),
            ("GET /v1/models", lambda: running.http.get("/v1/models"), 0.2),
            ("GET of a waiting job", lambda: running.http.get(f"{ROUTE}/{like}"), None),
            ("GET /metrics", lambda: running.http.get("/metrics"), None),
        ]
        for name, ask, bound in asked:
            figures[name] = _seconds(ask)
            figures["bad"] += int(bound is not None and figures[name]["median s"] > bound)
        return figures


def _seconds(ask: Callable[[], httpx.Response]) -> Figures:
    """Return median and longest time of twenty answers."""
    seconds = sorted(ask().elapsed.total_seconds() for _ in range(20))
    return {"median s": round(statistics.median(seconds), 4), "longest s": round(seconds[-1], 4)}


def _copy(database: Path, like: str) -> None:
    """Write copies of a waiting job into the database, each of a scan that does not exist."""
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(workflow_status)")]
        row = connection.execute("SELECT * FROM workflow_status WHERE workflow_uuid = ?", (like,)).fetchone()
        stored = connection.execute("SELECT inputs FROM workflow_input WHERE workflow_uuid = ?", (like,)).fetchone()[0]
        job = dict(zip(columns, row, strict=True)) | {"priority": 3, "status": "ENQUEUED", "started_at_epoch_ms": None}
        insert = f"INSERT INTO workflow_status ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - column names
        for n in range(QUEUED):
            job["workflow_uuid"] = f"{n:032x}"
            arguments = json.loads(stored)
            arguments["positionalArgs"][1] = f"{n:064x}"
            connection.execute(insert, [*job.values()])
            connection.execute(
                "INSERT INTO workflow_input VALUES (?, ?, 0)", (job["workflow_uuid"], json.dumps(arguments))
            )


def slow() -> Figures:
    """Let many clients send a byte a second, half of them of a header and half of a body, and ask for the health meanwhile."""
    with probe() as running:
        host, port = running.service.url.removeprefix("http://").split(":")
        header = b"POST /v1/segmentations HTTP/1.1\r\nHost: localhost\r\n"
        body = header + b"Content-Length: 100000\r\nContent-Type: application/octet-stream\r\n\r\n"
        ended = threading.Event()
        closed: list[float] = []

        def crawl(start: bytes) -> None:
            began = time.monotonic()
            try:
                with socket.create_connection((host, int(port)), 10) as connection:
                    connection.sendall(start)
                    while not ended.wait(1):
                        connection.sendall(b"x")
            except OSError:
                closed.append(time.monotonic() - began)

        clients = [threading.Thread(target=crawl, args=(header if n % 2 else body,)) for n in range(SLOW_CLIENTS)]
        for client in clients:
            client.start()
        pings = []
        until = time.monotonic() + 60
        while time.monotonic() < until:
            pings.append(running.http.get("/v2/health/live").elapsed.total_seconds())
            time.sleep(0.1)
        state = running.finished(running.post().json()["id"])
        ended.set()
        for client in clients:
            client.join()
        return {
            "slow clients": SLOW_CLIENTS,
            "pings": len(pings),
            "ping median s": round(statistics.median(pings), 4),
            "ping longest s": round(max(pings), 3),
            "closed by the service": len(closed),
            "closed after s": round(statistics.median(closed), 1) if closed else None,
            "a job meanwhile": state,
            "bad": int(state != "succeeded") + int(max(pings) > 0.5),
        }


ROWS: dict[str, Callable[[], Figures]] = {
    row.__name__: row for row in (disk, locks, directory, memory, clock, queue, slow)
}


def main() -> int:
    """Run the rows that are named, or those that have no figures yet; return 1 if any figure is bad."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="rows to run, also if they have figures")
    arguments = parser.parse_args()
    done: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.rows or [name for name in ROWS if name not in done]:
        started = time.monotonic()
        try:
            figures = ROWS[name]()
        except Missing as missing:
            print(f"{name}: not run, {missing}", file=sys.stderr)
            continue
        when = {"date": dt.datetime.now(dt.UTC).date().isoformat(), "seconds": round(time.monotonic() - started)}
        done[name] = when | figures
        RESULTS.write_text(json.dumps(done, indent=2) + "\n")
        print(f"{name}: {json.dumps(figures)}")
    bad = sum(row["bad"] for row in done.values())
    print(f"{len(done)} of {len(ROWS)} rows have figures; bad: {bad}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
