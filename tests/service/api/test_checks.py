import asyncio
import dataclasses
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from pydicom.dataset import Dataset

from service.api.checks import check_scan_of, select_series
from service.api.deps import Services
from service.errors import PayloadTruncated
from service.intake.budget import Budget
from service.storage.local import Upload

Nifti = Callable[..., bytes]


@pytest.fixture(name="services")
def services_(locked: FastAPI) -> Services:
    """Return services without jobs whose budget is that of one check."""
    services: Services = dataclasses.replace(locked.state.services, checks=Budget(1, patience_s=0.05))
    locked.state.services = services
    for folder in (services.state.incoming, services.state.scans):
        folder.mkdir(parents=True, exist_ok=True)
    return services


def test_a_check_gives_its_claim_back(services: Services, nifti: Nifti) -> None:
    """Also after a fault, so that the next file is checked."""
    with Upload(services.state, "lab") as upload:
        upload.write(nifti()[:-1])
        upload.flush()
        for _ in range(2):
            with pytest.raises(PayloadTruncated):
                asyncio.run(check_scan_of(services, upload.path))


def test_a_chosen_series_takes_the_place_of_the_zip(
    services: Services, slices_of: Callable[..., list[Dataset]], zip_of: Nifti
) -> None:
    """The upload then is a zip of that series; nothing is left beside it."""
    with Upload(services.state, "lab") as upload:
        upload.write(zip_of(slices_of()))
        upload.flush()

        size = asyncio.run(select_series(services, upload, "1.2.5"))

        assert upload.path.stat().st_size == size
        assert upload.path.read_bytes().startswith(b"PK")
        assert list(services.state.incoming.iterdir()) == [upload.path]


def test_f10_a_client_beyond_the_budget_is_asked_to_come_again(
    services: Services, locked: FastAPI, lab_key: str, nifti: Nifti
) -> None:
    """503 with Retry-After, as a problem document."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(locked)
        headers = {"Authorization": f"Bearer {lab_key}"}
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)
        async with client, services.checks.claim(1):
            return await client.post("/v1/scans", content=nifti())

    answer = asyncio.run(send())

    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/service-busy")
    assert int(answer.headers["Retry-After"]) > 0
