import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.errors import SettingsError
from service.server import run_server
from service.settings import Settings

SERVE = [sys.executable, "-m", "service", "serve", "--port", "0"]


@contextmanager
def _serve(state: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(state)}
    with subprocess.Popen(
        [*SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if " is ready at " in line).split()[5]


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, children) for each in (child, *_descendants(child))]


def _alive(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])  # noqa: S104 - refused
def test_an_address_beyond_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    """Without keys nobody else may reach the service; nothing is created before that is known."""
    with pytest.raises(SettingsError, match="--behind-proxy"):
        run_server(Settings(state_dir=tmp_path / "state"), host, 0)

    assert not (tmp_path / "state").exists()


def test_a_running_server_says_where_it_is(tmp_path: Path) -> None:
    """The first lines give address, state and notice; a second server is refused; SIGTERM leaves no process behind.

    One server for all of these, because it takes seconds to start.
    """
    state = tmp_path / "state"
    with _serve(state) as process:
        address = _address(process)
        assert process.stdout is not None
        assert f"state in {state}; no telemetry" in process.stdout.readline()
        assert "For research use only" in process.stdout.readline()
        assert httpx.get(f"{address}/v2/health/live").json() == {"live": True}

        with _serve(state) as second:
            out, err = second.communicate(timeout=30)
        assert (second.returncode, out) == (1, "")
        assert err.startswith("The configuration is not valid: Another calibrant serve uses this state directory.")
        assert err.count("\n") == 1

        descendants = _descendants(process.pid)
        assert descendants
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        assert time.monotonic() - started < 8
        assert "Traceback" not in process.communicate()[1]
        assert _alive(descendants) == []


def test_a_killed_server_leaves_no_process(tmp_path: Path) -> None:
    """A kill -9 of the service ends its children too, and the next service takes the state directory."""
    with _serve(tmp_path / "state") as process:
        _address(process)
        descendants = _descendants(process.pid)
        process.kill()
        process.wait(timeout=10)
        assert _alive(descendants) == []

    with _serve(tmp_path / "state") as process:
        assert _address(process).startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_exit_code_1(tmp_path: Path, server_url: str) -> None:
    """A server that cannot listen ends with an error that says so, and without a traceback."""
    with _serve(tmp_path / "state", "--port", server_url.rpartition(":")[2]) as process:
        out, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "is ready at" not in out
    assert "address already in use" in err
    assert "Traceback" not in err
