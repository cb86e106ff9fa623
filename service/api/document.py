"""A JSON body -> a checked model, never more of it than a few sentences need."""

from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.errors import InvalidRequest, PayloadTooLarge

MAX_BYTES: Final = 65536

_Model = TypeVar("_Model", bound=BaseModel)


async def receive_document(request: Request, model: type[_Model]) -> _Model:
    """Return the body of a request.

    Raises:
        PayloadTooLarge: more than `MAX_BYTES`.
        InvalidRequest: no JSON, or fields that are missing, unknown or not what they should be; no value is repeated.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            msg = f"At most {MAX_BYTES} bytes of JSON are read here."
            raise PayloadTooLarge(msg)
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        known = set(model.model_fields)
        # Names of fields that nobody knows are the caller's own text.
        reasons = "; ".join(
            f"{'.'.join(str(part) for part in each['loc'][:1] if part in known) or 'body'}: {each['type']}"
            for each in error.errors(include_input=False)
        )
        msg = f"The body cannot be used: {reasons}. See /docs."
        raise InvalidRequest(msg) from error


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of a route with such a body."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _inlined(schema, definitions)}},
        }
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - a piece of JSON
    """Return a schema without references: FastAPI collects components of the bodies that it reads itself only."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name in definitions:
        return _inlined(definitions[name], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
