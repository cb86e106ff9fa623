"""Jobs on a real PostgreSQL server, a private one of these tests: the service dies, the server dies, nothing is lost."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psycopg
import pytest
import sqlalchemy

from model_training.data.layouts.msd import read_msd
from service.errors import SettingsError
from service.jobs.database import JobDatabase, open_database
from service.storage.local import StateDirectory
from tests.service.jobs.contract import JobDatabaseContract

PASSWORD = "never%to/be@seen"  # noqa: S105 - of the private server; each sign means something in an address
JOBS = 6
WAITING = 48  # requests at once: more than the 40 threads that answer them
PROBE_SECONDS = 5


def shows_password(text: str) -> bool:
    """Return whether a text holds the password, plain or as an address holds it."""
    return PASSWORD in text or quote(PASSWORD, safe="") in text


def wait_until(holds: Callable[[], bool]) -> None:
    """Return as soon as something holds."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Server:
    """A PostgreSQL cluster in a temporary folder, run by the user `postgres` where the tests are root."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self._as:
            subprocess.run(["chown", "postgres", folder], check=True)
        (folder / "password").write_text(PASSWORD)
        secret = ["-A", "scram-sha-256", f"--pwfile={folder}/password"]
        self._run("initdb", "-N", "-D", f"{folder}/data", "-U", "calibrant", *secret)
        # What a killed server has written is in the cache of the system: only a loss of power would need fsync.
        self._options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
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

    def address(self, database: str, password: str = PASSWORD) -> str:
        """Return the address of a database."""
        return f"postgresql://calibrant:{quote(password, safe='')}@/{database}?host={self.folder}"

    def new_database(self, name: str) -> str:
        """Return the address of a new database."""
        with psycopg.connect(self.address("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.address(name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Yield a running server; absent it skips, but never silently in continuous integration."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        msg = "PostgreSQL is absent: apt-get install postgresql"
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
        ready = next((line for line in self.process.stdout if " listens at " in line), "")
        assert ready, self.log.read_text()
        self.http = httpx.Client(
            base_url=ready.split()[4], timeout=120, event_hooks={"response": [_reject_shown_password]}
        )

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

    @property
    def ready(self) -> bool:
        """Whether it says that it can serve."""
        return self.http.get("/v2/health/ready").status_code == httpx.codes.OK

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


def _reject_shown_password(response: httpx.Response) -> None:
    assert not shows_password(response.read().decode(errors="replace") + str(response.headers))


@pytest.fixture
def scans(hippocampus: Path) -> list[Path]:
    """Return real scans."""
    return [case.images[0] for case in read_msd(hippocampus, str)["test"][:JOBS]]


def test_jobs_outlive_the_service_and_the_database_server(server: Server, scans: list[Path], tmp_path: Path) -> None:
    """After a kill -9 of the service, then of the server under it, every acknowledged job has one result."""
    url, state = server.new_database("jobs"), tmp_path / "state"
    with Service(state, url) as service:
        jobs = [service.submit(scan) for scan in scans[: JOBS // 2]]
        service.kill()
    with Service(state, url) as service:
        jobs += [service.submit(scan) for scan in scans[JOBS // 2 :]]
        server.pg_ctl("restart", "-m", "immediate")
        wait_until(lambda: service.ready)

        found = service.finish(jobs)

        assert [job["state"] for job in found] == ["succeeded"] * JOBS
        listed = service.http.get("/v1/segmentations").json()["jobs"]
        assert sorted(job["id"] for job in listed) == sorted(jobs)
        assert not (state / "jobs.sqlite").exists()
        assert not shows_password(service.log.read_text())
    assert sorted(folder.name for folder in (state / "results").iterdir()) == sorted(jobs)


def test_a_job_ends_and_a_second_service_is_refused_while_the_server_goes_and_comes(
    server: Server, scans: list[Path], tmp_path: Path
) -> None:
    """A job whose end cannot be recorded is recorded later; readiness tells; refusals say why, without the password."""
    url, state = server.new_database("away"), tmp_path / "state"
    with Service(state, url) as service:
        copy = shutil.copytree(state, tmp_path / "copy")
        beside = start(copy, url)
        job = service.submit(scans[0])
        wait_until((state / "work" / job).exists)
        server.pg_ctl("stop", "-m", "immediate")
        try:
            wait_until((state / "results" / job).exists)
            wait_until(lambda: not service.ready)
            pool = ThreadPoolExecutor(WAITING)
            waiting = [pool.submit(service.http.get, "/v1/segmentations") for _ in range(WAITING)]
            time.sleep(0.5)
            for probe, status in (("live", 200), ("ready", 503)):
                assert service.http.get(f"/v2/health/{probe}", timeout=PROBE_SECONDS).status_code == status
            unreachable = start(tmp_path / "other", url)
        finally:
            server.pg_ctl("start")
        wait_until(lambda: service.ready)

        assert {answer.result().status_code for answer in waiting} == {200}
        assert service.finish([job])[0]["state"] == "succeeded"
        assert not shows_password(service.log.read_text())

    for refused, why in ((beside, "Another calibrant serve uses the database"), (unreachable, "cannot be used")):
        assert refused.returncode == 1
        assert why in refused.stderr
        assert not shows_password(refused.stderr + refused.stdout)


def start(state: Path, url: str) -> "subprocess.CompletedProcess[str]":
    """Return what a service said that ended by itself."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(state), "CALIBRANT_DATABASE_URL": url}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """Return an empty state directory."""
    return StateDirectory.open(tmp_path / "state")


class TestPostgresql(JobDatabaseContract):
    """A database of a PostgreSQL server."""

    @pytest.fixture
    def url(self, server: Server) -> str | None:
        """Return the URL of a new database."""
        return server.new_database(f"contract-{uuid.uuid4().hex}")


def hold_case(state: StateDirectory) -> None:
    """Put a result into a state directory."""
    (state.results / "job").mkdir()


def test_a_directory_with_cases_never_changes_its_database(server: Server, state: StateDirectory) -> None:
    """Its results would be erased, because no job of the other database leads to them; while it is empty it may."""
    first, second = server.new_database("first"), server.new_database("second")
    for url in (None, first, None, second):
        open_database(state, url)
    hold_case(state)

    for url, why in ((None, "are in a PostgreSQL database"), (first, "belongs to another"), (second, "")):
        if why:
            with pytest.raises(SettingsError, match=why):
                open_database(state, url)
        else:
            open_database(state, url)


def test_a_directory_with_cases_in_sqlite_refuses_a_new_database(server: Server, state: StateDirectory) -> None:
    """It goes on with SQLite afterwards as if nothing had been asked."""
    url = server.new_database("late")
    open_database(state, None)
    hold_case(state)

    with pytest.raises(SettingsError, match="is new, but this state directory holds cases"):
        open_database(state, url)

    assert open_database(state, None).address.startswith("sqlite:")


def test_a_database_belongs_to_one_state_directory(server: Server, state: StateDirectory, tmp_path: Path) -> None:
    """Another directory is refused, before and after it has a name, and is free for SQLite afterwards."""
    url = server.new_database("owned")
    open_database(state, url)
    other = StateDirectory.open(tmp_path / "other")

    for _ in range(2):
        with pytest.raises(SettingsError, match="belongs to another state directory"):
            open_database(other, url)

    hold_case(other)
    assert open_database(other, None).address.startswith("sqlite:")


def test_the_lock_is_taken_again_when_the_server_is_back(server: Server, state: StateDirectory) -> None:
    """The lock dies with the server; released, the next service has it."""
    url = server.new_database("locked")
    one, other = open_database(state, url), open_database(state, url)
    one.hold()
    try:
        _refuses(other)
        server.pg_ctl("stop", "-m", "immediate")
        wait_until(lambda: not one.reachable)
        server.pg_ctl("start")
        wait_until(lambda: one.reachable)
        _refuses(other)
    finally:
        one.release()
    other.hold()
    other.release()


def _refuses(database: JobDatabase) -> None:
    with pytest.raises(SettingsError, match="Another calibrant serve"):
        database.hold()


def test_a_wrong_password_is_told_without_it(server: Server, state: StateDirectory) -> None:
    """PostgreSQL gives no SQLSTATE for a refused login."""
    server.new_database("secret")

    with pytest.raises(SettingsError, match="whether user, password") as caught:
        open_database(state, server.address("secret", "mistyped"))

    assert "mistyped" not in str(caught.value)


def test_an_address_of_several_hosts_is_understood(server: Server, state: StateDirectory) -> None:
    """Addresses of servers with a stand-by are written so; the jobs' library reads them otherwise than PostgreSQL does."""
    server.new_database("several")
    host = quote(str(server.folder), safe="")
    database = open_database(state, f"postgresql://calibrant:{quote(PASSWORD, safe='')}@%2Fnowhere,{host}/several")

    engine = sqlalchemy.create_engine(sqlalchemy.make_url(database.address).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT current_database()")).scalar() == "several"
    engine.dispose()
