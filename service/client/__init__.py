"""The client library: `Client` and `AsyncClient` on httpx, with neither torch nor monai."""

from service.client.async_http import AsyncClient
from service.client.http import Client
from service.client.result import Result

__all__ = ["AsyncClient", "Client", "Result"]
