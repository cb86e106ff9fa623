from pathlib import Path

import anyio
import pytest

from service.client import AsyncClient
from service.errors import ClientError, ServerUnreachable


def test_a_real_scan_is_segmented_by_a_real_server(server_url: str, hippocampus: Path) -> None:
    """Three scans are segmented concurrently by one client, and each mask is that of its scan."""
    scans = [hippocampus / "imagesTr" / f"hippocampus_{number}.nii.gz" for number in ("003", "004", "006")]
    found: dict[str, bytes] = {}

    async def segment(client: AsyncClient, scan: Path) -> None:
        found[scan.name] = (await client.segment(scan)).mask

    async def main() -> None:
        async with AsyncClient(server_url) as client, anyio.create_task_group() as group:
            for scan in scans:
                group.start_soon(segment, client, scan)

    anyio.run(main)

    assert set(found) == {scan.name for scan in scans}
    assert len(set(found.values())) == 3
    assert all(mask.startswith(b"\x1f\x8b") for mask in found.values())


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
