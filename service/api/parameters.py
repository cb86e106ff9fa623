"""Refuses query parameters that the route does not have: a misspelt one would be ignored, and the default be used.

What a route has follows from the OpenAPI document. MONAI Label's routes take whatever its clients send.
"""

import difflib
from collections.abc import Collection
from functools import lru_cache

from fastapi import FastAPI, Request

from service.errors import InvalidRequest


async def reject_unknown(request: Request) -> None:
    """Refuse a request with a query parameter that the route does not have, or with one value too many.

    Raises:
        InvalidRequest: the message names the nearest parameter of the route; it does not repeat what was sent.
    """
    known = parameters_of(request)
    for name in request.query_params:
        if name not in known:
            msg = f"A query parameter is not known here. {suggestion(name, known)}"
            raise InvalidRequest(msg)
        if not known[name] and len(request.query_params.getlist(name)) > 1:
            msg = f"The query parameter {name} was given more than once. Give it once."
            raise InvalidRequest(msg)


def parameters_of(request: Request) -> dict[str, bool]:
    """Return the names of the query parameters of a request's route, and whether each may be repeated."""
    path = getattr(request.scope.get("route"), "path", "")
    method = "get" if request.method == "HEAD" else request.method.lower()
    return _parameters(request.app, path, method)


def suggestion(name: str, known: Collection[str]) -> str:
    """Return a sentence with the nearest of the known names, or with all of them if none is near."""
    if not known:
        return "This route has none: leave it out."
    near = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Expected {', '.join(sorted(known))}."


@lru_cache(maxsize=1000)
def _parameters(app: FastAPI, path: str, method: str) -> dict[str, bool]:
    operation = app.openapi()["paths"].get(path, {}).get(method, {})
    queries = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
    return {parameter["name"]: _repeats(parameter["schema"]) for parameter in queries}


def _repeats(schema: dict[str, object]) -> bool:
    kinds = schema.get("anyOf", [schema])
    return isinstance(kinds, list) and any(kind.get("type") == "array" for kind in kinds)
