"""Shared by the pipeline tests: variants of the tiny bundle's configuration."""

from collections.abc import Callable

import pytest

from service.bundle.schema import ServiceConfig


@pytest.fixture(name="config")
def config_(tiny_config: ServiceConfig) -> Callable[..., ServiceConfig]:
    """Return the function that changes fields of the tiny bundle's configuration."""
    return lambda **fields: tiny_config.model_copy(update=fields)  # noqa: PLW0108 - not a lambda of the same arguments
