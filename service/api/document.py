"""Small JSON bodies: reading one into a checked model, and describing it in OpenAPI."""

from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.errors import InvalidRequest, PayloadTooLarge

MAX_BYTES: Final = 65536

_Model = TypeVar("_Model", bound=BaseModel)


async def receive_document(request: Request, model: type[_Model]) -> _Model:
    """Return the body of a request as a model.

    Raises:
        PayloadTooLarge: the body exceeds `MAX_BYTES`.
        InvalidRequest: not JSON, or fields that are missing, unknown or invalid. The message repeats no value.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            msg = f"At most {MAX_BYTES} bytes of JSON are accepted."
            raise PayloadTooLarge(msg)
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        known = set(model.model_fields)
        # The names of unknown fields are the caller's own text, so they are not repeated.
        reasons = "; ".join(
            f"{'.'.join(str(part) for part in detail['loc'][:1] if part in known) or 'body'}: {detail['type']}"
            for detail in error.errors(include_input=False)
        )
        msg = f"The body cannot be used: {reasons}. See /docs."
        raise InvalidRequest(msg) from error


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a route whose body is this model."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _inlined(schema, definitions)}},
        }
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - a piece of JSON
    """Return a schema without references: FastAPI only adds components for bodies that it parses itself."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name in definitions:
        return _inlined(definitions[name], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
