"""The client library: `Client` and `AsyncClient` on httpx, without torch and MONAI."""

from .async_http import AsyncClient
from .calls import Order
from .http import Client
from .result import Result

__all__ = ["AsyncClient", "Client", "Order", "Result"]
