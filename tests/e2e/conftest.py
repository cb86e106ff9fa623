"""What the end-to-end tests share: a service started as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a running `calibrant serve`."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield next(line.split()[4] for line in process.stdout if " listens at " in line)
        process.terminate()
