import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from service.errors import ServiceBusy
from service.intake.budget import COPIES, LEAST_BYTES, Budget, claim_of

Make = Callable[..., bytes]


def claim_of_bytes(content: bytes, path: Path) -> int:
    """Return the claim of a file with this content."""
    path.write_bytes(content)
    return claim_of(path)


def test_a_claim_follows_the_largest_file_that_is_read_whole(
    nifti: Make, slices_of: Callable[..., list[Dataset]], zip_of: Make, tmp_path: Path
) -> None:
    """NIfTI is read piece by piece; of a zip the largest file counts, however small the zip; damage claims the least."""
    path = tmp_path / "scan"
    flat = slices_of(np.zeros((500, 400, 3), np.int16))

    assert claim_of_bytes(nifti(), path) == LEAST_BYTES
    assert claim_of_bytes(b"", path) == LEAST_BYTES
    zipped = zip_of(flat)
    assert len(zipped) < 10_000
    assert 400_000 * COPIES < claim_of_bytes(zipped, path) - LEAST_BYTES < 500_000 * COPIES
    assert claim_of_bytes(zipped[:-30], path) == LEAST_BYTES


def test_f10_checks_at_once_stay_within_the_budget() -> None:
    """Twenty checks of 40 never hold more than 100; those that wait come in the order of their coming."""
    held, most, order = 0, 0, []

    async def check(budget: Budget, number: int) -> None:
        nonlocal held, most
        async with budget.claim(40):
            order.append(number)
            held += 40
            most = max(most, held)
            await asyncio.sleep(0.001)
            held -= 40

    async def run() -> None:
        budget = Budget(100)
        await asyncio.gather(*(check(budget, number) for number in range(20)))

    asyncio.run(run())

    assert most == 80
    assert order == list(range(20))


def test_f10_a_claim_beyond_the_budget_is_granted_alone() -> None:
    """One large file is checked while nothing else is."""

    async def run() -> None:
        budget = Budget(100, patience_s=0.05)
        async with budget.claim(10_000):
            with pytest.raises(ServiceBusy):
                async with budget.claim(1):
                    pass
        async with budget.claim(100):
            pass

    asyncio.run(run())


def test_f10_who_waits_too_long_is_told_when_to_come_again() -> None:
    """The error is 503 with a number of seconds; who gives up, or is cancelled, holds up nobody behind."""

    async def run() -> None:
        budget = Budget(100, patience_s=0.05)
        async with budget.claim(60):
            with pytest.raises(ServiceBusy) as busy:
                async with budget.claim(60):
                    pass
            assert busy.value.status == 503
            assert (busy.value.retry_after_s or 0) > 0
            cancelled = asyncio.ensure_future(budget.claim(60).__aenter__())
            await asyncio.sleep(0.01)
            behind = asyncio.ensure_future(budget.claim(40).__aenter__())
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait_for(behind, 1)

    asyncio.run(run())
