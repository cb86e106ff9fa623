"""HEAD for every route that has GET (RFC 9110, section 9.3.2), which FastAPI leaves to the application."""

import inspect

from fastapi import APIRouter
from fastapi.routing import APIRoute


def answer_head(router: APIRouter) -> None:
    """Add HEAD to every GET route of a router that has none; a stream of events has no end that could be answered."""
    routes = [(route, route.methods or set()) for route in router.routes if isinstance(route, APIRoute)]
    have = {route.path for route, methods in routes if "HEAD" in methods}
    for route, methods in routes:
        if "GET" in methods and route.path not in have and not inspect.isasyncgenfunction(route.endpoint):
            router.add_api_route(
                route.path.removeprefix(router.prefix),
                route.endpoint,
                methods=["HEAD"],
                include_in_schema=False,
                response_model=route.response_model,
                response_class=route.response_class,
            )
