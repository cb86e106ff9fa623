from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.client.calls import Order

MakeJob = Callable[..., dict[str, Any]]
Answer = Callable[..., Callable[[httpx.Request], httpx.Response]]
Ask = Callable[..., Any]


def test_orders_have_keys_of_their_own(scan: Path) -> None:
    """Two orders of one scan have different keys by default."""
    assert Order(scan).idempotency_key != Order(scan).idempotency_key
