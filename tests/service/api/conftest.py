"""A second running service that needs keys, and an application in this process that does."""

import gzip
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.api.auth import Sessions
from service.api.deps import Services
from service.app import create_app
from service.bundle.registry import Registry
from service.errors import JobNotFound
from service.observability.metrics import Metrics
from service.settings import Settings
from service.storage.keys import Keys, add_key
from service.storage.local import StateDirectory


@dataclass(frozen=True)
class Guarded:
    """A running `calibrant serve` with a file of keys."""

    url: str
    log: Path
    keys: Path
    state: Path
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, key: str | None) -> httpx.Client:
        """Return a connection that sends this key with every request."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.clients.append(httpx.Client(base_url=self.url, headers=headers, timeout=60))
        return self.clients[-1]


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Yield a service that needs keys; it listens on every address, which requires keys."""
    root = tmp_path_factory.mktemp("guarded")
    keys, log = root / "keys.json", root / "log"
    add_key(keys, "nobody", admin=False)
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(root / "state"), "CALIBRANT_KEYS_FILE": str(keys)}
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--host", "0.0.0.0"]  # noqa: S104 - with keys
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + 60
            while not (lines := [line for line in log.read_text().splitlines() if " listens at " in line]):
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            guarded_service = Guarded(lines[0].split()[4].replace("0.0.0.0", "127.0.0.1"), log, keys, root / "state")  # noqa: S104 - as above
            yield guarded_service
            for client in guarded_service.clients:
                client.close()
        finally:
            process.terminate()


Client = Callable[[str], httpx.Client]


@pytest.fixture(scope="session")
def login_as(guarded: Guarded) -> Client:
    """Return the function that connects with a new key of an owner."""
    return lambda owner: guarded.client(add_key(guarded.keys, owner, admin=False))


class NoJobs:
    """A queue without jobs."""

    def find(self, owner: str, identifier: str) -> None:
        """Raise JobNotFound."""
        msg = f"{owner} has no {identifier}"
        raise JobNotFound(msg)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    """Return a file with the key of one owner, `lab`; the key itself is in `lab.key` beside it."""
    path = tmp_path / "keys.json"
    (tmp_path / "lab.key").write_text(add_key(path, "lab", admin=False))
    return path


@pytest.fixture
def lab_key(keys_file: Path) -> str:
    """Return the key of `lab`."""
    return (keys_file.parent / "lab.key").read_text()


@pytest.fixture
def locked(tmp_path: Path, keys_file: Path) -> FastAPI:
    """Return the whole application with keys, not started, so that it has no jobs."""
    settings = Settings(state_dir=tmp_path / "state", keys_file=keys_file)
    app = create_app(settings)
    state, keys = StateDirectory(settings.state_dir), Keys(keys_file)
    nothing = NoJobs()
    app.state.services = Services(settings, state, Registry(), nothing, keys, Sessions(8), Metrics(), nothing, nothing)  # type: ignore[arg-type]
    return app


@pytest.fixture(name="long")
def long_(nifti: Callable[..., bytes]) -> bytes:
    """Return a scan of many voxels that takes seconds and was never sent before."""
    array = np.random.default_rng(0).integers(0, 200, (45, 60, 50), np.uint8).repeat(6, 0).repeat(6, 1).repeat(6, 2)
    return gzip.compress(nifti(array, np.diag([1 / 6, 1 / 6, 1 / 6, 1]), descrip=uuid.uuid4().hex.encode()), 1)
