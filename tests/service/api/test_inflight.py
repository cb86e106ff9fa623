import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from service.api.inflight import Allowance, UploadsInFlight
from service.client import Client
from service.errors import ServiceBusy, TooManyUploads


def test_f2_an_owner_has_bounded_uploads() -> None:
    """The third upload of an owner is refused with 429, the fourth of all with 503; an ended one makes room."""
    uploads = UploadsInFlight(Allowance(2, 1000), Allowance(3, 1000))

    with uploads.admit("lab", 1), uploads.admit("lab", 1):
        with pytest.raises(TooManyUploads, match="2 of your uploads") as caught, uploads.admit("lab", 1):
            pass
        assert caught.value.status == 429
        with uploads.admit("clinic", 1), pytest.raises(ServiceBusy), uploads.admit("practice", 1):
            pass
    with uploads.admit("lab", 1), uploads.admit("lab", 1):
        pass


def test_f2_an_owner_has_bounded_bytes() -> None:
    """Announced bytes count before they arrive, others as they arrive; a single upload always has room."""
    uploads = UploadsInFlight(Allowance(9, 100), Allowance(9, 150))

    with uploads.admit("lab", 1000), pytest.raises(TooManyUploads), uploads.admit("lab", 1):
        pass
    with uploads.admit("lab", 60) as place, uploads.admit("lab", 0) as other:
        place.grow(60)
        other.grow(40)
        with pytest.raises(TooManyUploads):
            other.grow(41)
        with uploads.admit("clinic", 50), pytest.raises(ServiceBusy), uploads.admit("practice", 1):
            pass
    with uploads.admit("lab", 100):
        pass


def test_f2_retry_after_follows_the_measured_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two uploads of about ten seconds on their way, one ends within five; before any was timed, a second is guessed."""
    uploads = UploadsInFlight(Allowance(2, 9), Allowance(9, 9))
    clock = iter([0.0, 10.0, *[20.0] * 9])
    with (
        uploads.admit("lab", 1),
        uploads.admit("lab", 1),
        pytest.raises(TooManyUploads) as caught,
        uploads.admit("lab", 1),
    ):
        pass
    assert caught.value.retry_after_s == 1

    uploads = UploadsInFlight(Allowance(2, 9), Allowance(9, 9))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with uploads.admit("lab", 1):
        pass
    with (
        uploads.admit("lab", 1),
        uploads.admit("lab", 1),
        pytest.raises(TooManyUploads) as caught,
        uploads.admit("lab", 1),
    ):
        pass
    assert caught.value.retry_after_s == 5


@pytest.fixture(name="full")
def full_(locked: FastAPI) -> Iterator[tuple[str, UploadsInFlight]]:
    """Yield the address of an application with room for one upload of an owner, and its uploads."""
    uploads: UploadsInFlight = locked.state.services.uploads
    uploads.per_owner = Allowance(1, 1 << 20)
    config = uvicorn.Config(locked, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", uploads
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("client", ["curl", "ours"])
def test_f2_curl_and_our_client_get_through(
    full: tuple[str, UploadsInFlight], client: str, lab_key: str, nifti: Callable[..., bytes], tmp_path: Path
) -> None:
    """While another upload is on its way the answer is 429 with Retry-After; both clients come back and are served."""
    url, uploads = full
    scan = tmp_path / "scan.nii"
    scan.write_bytes(nifti())
    with uploads.admit("lab", 10):
        answer = httpx.post(f"{url}/v1/scans", content=b"x", headers={"Authorization": f"Bearer {lab_key}"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["type"] == "/problems/too-many-uploads"
        if client == "curl":
            command = [
                "curl",
                "-sS",
                "--retry",
                "5",
                "-H",
                f"Authorization: Bearer {lab_key}",
                "-o",
                str(tmp_path / "out"),
            ]
            command += ["-w", "%{http_code} ", "--data-binary", f"@{scan}", f"{url}/v1/scans"]
            sent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        else:
            done: list[str] = []

            def send() -> None:
                with Client(url, key=lab_key) as ours:
                    done.append(ours.upload(scan).id)

            thread = threading.Thread(target=send)
            thread.start()
        time.sleep(0.5)

    if client == "curl":
        assert sent.communicate(timeout=20)[0].split()[-1] == "201"
    else:
        thread.join(20)
        assert len(done) == 1
