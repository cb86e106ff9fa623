import inspect
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from service.client import AsyncClient
from service.errors import ClientError, ServerUnreachable
from tests.service.client.contract import Ask, ClientContract, Handler


class AskAsyncClient(Ask):
    """Calls the asynchronous client."""

    def __call__(
        self, handler: Handler, method: str, *arguments: object, patience_s: float = 0, **options: object
    ) -> Any:  # noqa: ANN401 - of any method
        """Return what the method returns; what it yields comes back as a list."""

        async def handle(request: httpx.Request) -> httpx.Response:
            await request.aread()
            return handler(request)

        async def talk() -> Any:  # noqa: ANN401 - as above
            async with AsyncClient("http://server", patience_s=patience_s) as client:
                await client._http.aclose()
                client._http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handle))
                client._retry.met = True
                outcome = getattr(client, method)(*arguments, **options)
                return [item async for item in outcome] if inspect.isasyncgen(outcome) else await outcome

        return anyio.run(talk)


class TestAsyncClient(ClientContract):
    """The asynchronous client."""

    @pytest.fixture
    def ask(self, paused: list[float]) -> Ask:
        """Return the function that calls the client."""
        return AskAsyncClient(paused)


def test_a_real_scan_is_segmented_by_a_real_server(server_url: str, hippocampus: Path) -> None:
    """Three scans are segmented concurrently by one client, and each mask is that of its scan."""
    scans = [hippocampus / "imagesTr" / f"hippocampus_{number}.nii.gz" for number in ("003", "004", "006")]
    masks: dict[str, bytes] = {}

    async def segment(client: AsyncClient, scan: Path) -> None:
        masks[scan.name] = (await client.segment(scan)).mask

    async def main() -> None:
        async with AsyncClient(server_url) as client, anyio.create_task_group() as group:
            for scan in scans:
                group.start_soon(segment, client, scan)

    anyio.run(main)

    assert set(masks) == {scan.name for scan in scans}
    assert len(set(masks.values())) == 3
    assert all(mask.startswith(b"\x1f\x8b") for mask in masks.values())


def test_nobody_listens() -> None:
    """A closed port is ServerUnreachable."""

    async def main() -> None:
        async with AsyncClient("http://127.0.0.1:1") as client:
            await client.models()

    with pytest.raises(ServerUnreachable, match="Is calibrant serve running"):
        anyio.run(main)


@pytest.mark.parametrize("url", ["nonsense", "http://host:port"])
def test_an_address_that_is_none_is_said(url: str) -> None:
    """An invalid address is a CalibrantError, not an httpx exception."""

    async def main() -> None:
        async with AsyncClient(url) as client:
            await client.models()

    with pytest.raises(ClientError):
        anyio.run(main)
