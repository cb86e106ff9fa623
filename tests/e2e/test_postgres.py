"""Jobs on a real PostgreSQL server, a private one of these tests: the service dies, the server dies, nothing is lost."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import pytest

from model_training.layouts.msd import read_msd

PASSWORD = "never-to-be-seen"  # noqa: S105 - of the private server
JOBS = 6


class Server:
    """A PostgreSQL cluster in a temporary folder, run by the user `postgres` where the tests are root."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self._as:
            subprocess.run(["chown", "postgres", folder], check=True)
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "calibrant")
        self._options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        self.pg_ctl("start")

    def _run(self, program: str, *arguments: str) -> None:
        # Its log goes to a file: an inherited pipe would stay open for as long as the server lives.
        subprocess.run(
            [*self._as, self._programs / program, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=self.folder
        )

    def pg_ctl(self, action: str, *options: str) -> None:
        """Start, stop or restart the server and wait until that is done."""
        started = ["-o", self._options] if action != "stop" else []
        self._run("pg_ctl", action, "-w", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", *options, *started)

    def new_database(self, name: str) -> str:
        """Return the address of a new database, with a password that the server does not ask for."""
        with psycopg.connect(host=str(self.folder), user="calibrant", dbname="postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql://calibrant:{PASSWORD}@/{name}?host={self.folder}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Yield a running server; absent it skips, but never silently in continuous integration."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        msg = "no PostgreSQL server is here: apt-get install postgresql"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    # A path of pytest's would be too long for a socket, and closed to another user.
    with tempfile.TemporaryDirectory(prefix="calibrant-pg-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder), programs[-1].parent)
        yield server
        server.pg_ctl("stop", "-m", "immediate")


class Service:
    """A running `calibrant serve`; a context manager."""

    def __init__(self, state: Path, url: str) -> None:
        self.log = state.with_suffix(".log")
        environment = os.environ | {"CALIBRANT_STATE_DIR": str(state), "CALIBRANT_DATABASE_URL": url}
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert self.process.stdout is not None
        ready = next((line for line in self.process.stdout if " is ready at " in line), "")
        assert ready, self.log.read_text()
        self.http = httpx.Client(base_url=ready.split()[5], timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """Kill the service; its inference process follows it."""
        self.process.kill()
        self.process.wait()

    def submit(self, scan: Path) -> str:
        """Send a scan and return the id of its job."""
        answer = self.http.post("/v1/segmentations", content=scan.read_bytes())
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def finish(self, jobs: list[str]) -> list[dict[str, Any]]:
        """Return the jobs once all have finished."""
        deadline = time.monotonic() + 120
        while True:
            found = [self.http.get(f"/v1/segmentations/{job}").json() for job in jobs]
            if all(job["state"] not in ("queued", "running") for job in found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


@pytest.fixture
def scans(hippocampus: Path) -> list[Path]:
    """Return real scans."""
    return [case.images[0] for case in read_msd(hippocampus, str)["test"][:JOBS]]


def test_jobs_outlive_the_service_and_the_database_server(server: Server, scans: list[Path], tmp_path: Path) -> None:
    """After a kill -9 of the service, then of the server under it, every acknowledged job has one result."""
    url = server.new_database("jobs")
    with Service(tmp_path / "state", url) as service:
        jobs = [service.submit(scan) for scan in scans[: JOBS // 2]]
        service.kill()
    with Service(tmp_path / "state", url) as service:
        jobs += [service.submit(scan) for scan in scans[JOBS // 2 :]]
        server.pg_ctl("restart", "-m", "immediate")
        assert service.http.get("/v2/health/ready").json() == {"ready": True}

        found = service.finish(jobs)

        assert [job["state"] for job in found] == ["succeeded"] * JOBS
        listed = service.http.get("/v1/segmentations").json()["jobs"]
        assert sorted(job["id"] for job in listed) == sorted(jobs)
        assert not (tmp_path / "state" / "jobs.sqlite").exists()
        assert PASSWORD not in service.log.read_text()
    assert sorted(folder.name for folder in (tmp_path / "state" / "results").iterdir()) == sorted(jobs)


def test_a_database_belongs_to_one_state_directory(server: Server, tmp_path: Path) -> None:
    """A second service elsewhere would run the first one's jobs again: it refuses to start and says what to do."""
    url = server.new_database("owned")
    with Service(tmp_path / "first", url):
        pass

    refused = start(tmp_path / "second", url)

    assert refused.returncode == 1
    assert "belongs to another state directory" in refused.stderr
    with Service(tmp_path / "first", url) as again:
        assert again.http.get("/v2/health/ready").status_code == 200


def test_a_service_without_its_database_is_not_ready(server: Server, tmp_path: Path) -> None:
    """While the server is away a running service says so; one that is to start says what it could not reach."""
    url = server.new_database("away")
    with Service(tmp_path / "state", url) as service:
        server.pg_ctl("stop", "-m", "immediate")
        try:
            assert service.http.get("/v2/health/ready").status_code == 503
            assert service.http.get("/v2/health/live").status_code == 200
            refused = start(tmp_path / "other", url)
        finally:
            server.pg_ctl("start")
        assert service.http.get("/v2/health/ready").status_code == 200
        assert PASSWORD not in service.log.read_text()

    assert refused.returncode == 1
    assert "CALIBRANT_DATABASE_URL cannot be used" in refused.stderr
    assert PASSWORD not in refused.stderr + refused.stdout


def start(state: Path, url: str) -> "subprocess.CompletedProcess[str]":
    """Return what a service said that ended by itself."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(state), "CALIBRANT_DATABASE_URL": url}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
