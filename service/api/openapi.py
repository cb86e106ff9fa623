"""The OpenAPI document: what FastAPI derives from the routes, plus problem types, keys and events."""

from typing import Any, Final

from fastapi import FastAPI

from service.api.auth import COOKIE
from service.errors import BY_CODE, CalibrantError, ClientError, SettingsError

_PLAIN_HTTP: Final = {"not-found": "No such route.", "method-not-allowed": "The route has no such method."}

_EVENTS: Final = "text/event-stream"


def describe(app: FastAPI) -> None:
    """Complete the application's OpenAPI 3.1 document with its problem types, keys and event streams."""
    derived = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = derived()
            _list_problems(document["components"]["schemas"]["Problem"])
            _describe_events_in_3_1(document)
            _describe_keys(document)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def problem_types() -> dict[str, str]:
    """Return a sentence for every ``type`` of a problem document."""
    never_sent = (ClientError, SettingsError)
    errors = {code: error for code, error in BY_CODE.items() if not issubclass(error, never_sent) and _is_leaf(error)}
    sentences = {code: (error.__doc__ or "").splitlines()[0] for code, error in errors.items()}
    return {f"/problems/{code}": sentence for code, sentence in (sentences | _PLAIN_HTTP).items()}


def _is_leaf(error: type[CalibrantError]) -> bool:
    return error is CalibrantError or not error.__subclasses__()


def _list_problems(problem: dict[str, Any]) -> None:
    types = problem_types()
    rows = "\n".join(f"- `{name}`: {sentence}" for name, sentence in sorted(types.items()))
    problem["properties"]["type"] |= {"enum": sorted(types), "description": f"Stable.\n{rows}"}


def _describe_keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "What `calibrant keys add` showed."},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "What `/login` sets."},
    }
    # The empty alternative: a service on a loopback address needs no keys.
    document["security"] = [{"key": []}, {"session": []}, {}]
    for path in document["paths"].values():
        for operation in path.values():
            if "4XX" not in operation["responses"]:
                operation["security"] = []  # health probes need no key


def _describe_events_in_3_1(document: dict[str, Any]) -> None:
    # FastAPI writes `itemSchema`, which belongs to OpenAPI 3.2.
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                if _EVENTS in response.get("content", {}):
                    text = "Server-sent events; the data of each event is a Job."
                    response["content"][_EVENTS] = {"schema": {"type": "string", "description": text}}
