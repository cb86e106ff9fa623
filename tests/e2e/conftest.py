"""What the end-to-end tests share: a service started as a user starts it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

START_S = 120.0
"""Seconds within which a service must be ready."""


def await_ready(address: str) -> None:
    """Wait until a service that listens says that it is ready."""
    deadline = time.monotonic() + START_S
    while not httpx.get(f"{address}/v2/health/ready").is_success:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a running `calibrant serve`."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        address = next(line.split()[4] for line in process.stdout if " listens at " in line)
        await_ready(address)
        yield address
        process.terminate()
