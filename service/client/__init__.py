"""The client library: `Client` and `AsyncClient` on httpx, with neither torch nor monai."""

from .async_http import AsyncClient
from .calls import Order
from .http import Client
from .result import Result

__all__ = ["AsyncClient", "Client", "Order", "Result"]
