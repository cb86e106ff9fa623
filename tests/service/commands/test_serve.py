import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.commands.serve import run_server
from service.errors import SettingsError
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
    return next(line for line in process.stdout if " listens at " in line).split()[4]


def _descendants(pid: int) -> list[int]:
    children = [child for one in Path(f"/proc/{pid}/task").glob("*/children") for child in one.read_text().split()]
    return [pid for child in map(int, children) for pid in (child, *_descendants(child))]


def _alive(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])  # noqa: S104 - refused
def test_an_address_beyond_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    """Without keys, only loopback addresses are allowed; nothing is created before that is checked."""
    with pytest.raises(SettingsError, match="--behind-proxy"):
        run_server(Settings(state_dir=tmp_path / "state"), host, 0)

    assert not (tmp_path / "state").exists()


def test_a_secret_path_is_refused_beyond_this_machine(tmp_path: Path) -> None:
    """A secret path is refused on other addresses even with keys, because proxies and browsers log it."""
    settings = Settings(state_dir=tmp_path / "state", keys_file=tmp_path / "keys.json", monailabel_secret="x" * 22)

    with pytest.raises(SettingsError, match="CALIBRANT_MONAILABEL_SECRET, listen on 127"):
        run_server(settings, "0.0.0.0", 0)  # noqa: S104 - refused

    assert not (tmp_path / "state").exists()
    with pytest.raises(SettingsError, match="file of keys"):  # a later check fails, so that this one passed
        run_server(settings.model_copy(update={"behind_proxy": True}), "0.0.0.0", 0)  # noqa: S104 - as above


def test_a_running_server_says_where_it_is(tmp_path: Path) -> None:
    """The first lines give address, state and notice; a second server is refused; SIGTERM leaves no process.

    One server for all of these, because it takes seconds to start.
    """
    state = tmp_path / "state"
    with _serve(state) as process:
        address = _address(process)
        assert process.stdout is not None
        assert f"state in {state}; no telemetry" in process.stdout.readline()
        assert "finished jobs are erased after 30 days" in process.stdout.readline()
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
    """After kill -9 of the service its children end, and the next service takes the state directory."""
    with _serve(tmp_path / "state") as process:
        _address(process)
        descendants = _descendants(process.pid)
        process.kill()
        process.wait(timeout=10)
        assert _alive(descendants) == []

    with _serve(tmp_path / "state") as process:
        assert _address(process).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:0,MIG-1"])
@pytest.mark.parametrize("command", ["serve", "predict", "batch"])
def test_a_device_that_is_missing_is_exit_code_3(
    tmp_path: Path, write_nifti: Callable[..., None], command: str, device: str
) -> None:
    """Without the GPU that is asked for nothing listens, and nothing is computed: one sentence says so, without a traceback."""
    write_nifti(tmp_path / "s.nii", np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32))
    arguments = {
        "serve": ["--port", "0"],
        "predict": [str(tmp_path / "s.nii"), "--out", str(tmp_path / "out")],
        "batch": [str(tmp_path / "s.nii"), "--out", str(tmp_path / "out"), "--local"],
    }
    environment = os.environ | {
        "CALIBRANT_STATE_DIR": str(tmp_path / "state"),
        "CALIBRANT_DEVICE": device,
        "CUDA_VISIBLE_DEVICES": "",  # on a machine that has one, too
    }
    ended = subprocess.run(
        [sys.executable, "-m", "service", command, *arguments[command]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    *logged, last = ended.stderr.splitlines()
    assert ended.returncode == 3
    assert last.startswith("The device cannot be used: cuda:0 cannot be used: torch ")
    assert "Choose cpu, or a device that calibrant doctor shows" in last
    assert all(line.startswith("{") for line in logged)
    assert "listens at" not in ended.stdout


def test_a_port_that_is_taken_is_exit_code_1(tmp_path: Path, server_url: str) -> None:
    """A server that cannot listen exits with 1 and a sentence, without a traceback."""
    with _serve(tmp_path / "state", "--port", server_url.rpartition(":")[2]) as process:
        out, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "listens at" not in out
    assert "cannot be listened on (Address already in use)" in err
    assert "--port" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("options", [{"behind_proxy": True}, {"keys_file": "keys.json"}], ids=["proxy", "keys"])
def test_an_address_beyond_this_machine_needs_keys_or_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """Keys or a proxy allow other addresses; a missing key file is an error."""
    asked: list[str] = []
    app = FastAPI()
    app.state.executor = SimpleNamespace(start=lambda: None, await_verdict=lambda: None, names=("cpu",))
    monkeypatch.setattr("service.commands.serve.create_app", lambda _: app)
    monkeypatch.setattr("uvicorn.Server.run", lambda server: asked.append(server.config.host))
    settings = Settings(state_dir=tmp_path / "state", **options)  # type: ignore[arg-type]

    with pytest.raises(SystemExit):  # the server was never run
        run_server(settings, "0.0.0.0", 0)  # noqa: S104 - it is not listened on

    assert asked == ["0.0.0.0"]  # noqa: S104 - as above


def test_without_its_file_of_keys_nothing_starts(tmp_path: Path) -> None:
    """A wrong CALIBRANT_KEYS_FILE is one sentence, and no service starts."""
    settings = Settings(state_dir=tmp_path / "state", keys_file=tmp_path / "missing.json")

    with pytest.raises(SettingsError, match="calibrant keys add OWNER makes one"):
        run_server(settings, "0.0.0.0", 0)  # noqa: S104 - refused


def test_who_waits_or_watches_does_not_keep_the_service_from_ending(
    tmp_path: Path, write_nifti: Callable[..., None]
) -> None:
    """SIGTERM ends the service within seconds although clients wait; the jobs go on at the next start."""
    fine = np.diag([0.25, 0.25, 0.25, 1])
    write_nifti(tmp_path / "scan.nii", np.random.default_rng(0).integers(0, 200, (180, 240, 200), np.uint8), fine)
    ends: list[str] = []

    def follow(method: str, path: str, **options: Any) -> None:  # noqa: ANN401 - httpx's own
        with contextlib.suppress(httpx.TransportError), httpx.stream(method, path, timeout=60, **options) as answer:
            ends.append(f"{answer.status_code}{len(answer.read()) > 0}")

    with _serve(tmp_path / "state") as process:
        address = _address(process)
        content = (tmp_path / "scan.nii").read_bytes()
        jobs = [httpx.post(f"{address}/v1/segmentations", content=content, timeout=60).json() for _ in range(3)]
        waits = {"params": {"scan": jobs[0]["scan"]}, "headers": {"Prefer": "wait=60"}}
        threads = [
            threading.Thread(target=follow, args=("GET", address + jobs[-1]["links"]["events"])),
            threading.Thread(target=follow, args=("POST", f"{address}/v1/segmentations"), kwargs=waits),
        ]
        for thread in threads:
            thread.start()
        time.sleep(1)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)
        assert time.monotonic() - started < 25
        for thread in threads:
            thread.join(10)
        assert "Traceback" not in process.communicate()[1]

    with _serve(tmp_path / "state") as process:
        address = _address(process)
        states = [httpx.get(address + job["links"]["self"]).json()["state"] for job in jobs]
        assert {*states} <= {"queued", "running", "succeeded"}
