import sys
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from service.api.openapi import problem_types
from service.app import create_app
from service.errors import BY_CODE, ScanError
from service.schemas import Job
from service.settings import Settings

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import write_openapi  # noqa: E402 - a script, not a package


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the application's own description."""
    return create_app(Settings(state_dir=tmp_path_factory.mktemp("state"))).openapi()


def test_the_committed_document_is_the_applications() -> None:
    """A route that changes shows in docs/openapi.json; scripts/write_openapi.py writes it."""
    assert write_openapi.TARGET.read_text() == write_openapi.document()


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """An independent validator accepts it as OpenAPI 3.1."""
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_operations_have_names_and_say_how_they_fail(document: dict[str, Any]) -> None:
    """Every route has a unique id, a sentence, and problem documents beside its success."""
    operations = [
        operation for path, methods in document["paths"].items() for operation in methods.values() if "/v1/" in path
    ]

    identifiers = [operation["operationId"] for operation in operations]
    assert len(set(identifiers)) == len(identifiers) > 10
    assert all(operation["description"].endswith(".") for operation in operations)
    for operation in operations:
        for status in ("4XX", "5XX"):
            assert operation["responses"][status]["content"].keys() == {"application/problem+json"}


def test_the_document_says_who_may_ask_and_where(document: dict[str, Any]) -> None:
    """The document gives servers, licence and security of every operation, as Redocly's linter recommends."""
    assert document["servers"] == [{"url": "/"}]
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    schemes = document["components"]["securitySchemes"]
    assert {name for choice in document["security"] for name in choice} == schemes.keys() == {"key", "session"}
    free = [
        path for path, methods in document["paths"].items() for operation in methods.values() if "security" in operation
    ]
    assert sorted(free) == ["/v2/health/live", "/v2/health/ready"]


def test_every_state_and_problem_is_listed(document: dict[str, Any]) -> None:
    """The document lists the states of a job and every problem type with a sentence, except abstract errors."""
    schemas = document["components"]["schemas"]

    assert schemas["Job"]["properties"]["state"]["enum"] == list(Job.model_fields["state"].annotation.__args__)  # type: ignore[union-attr]
    listed = schemas["Problem"]["properties"]["type"]["enum"]
    assert listed == sorted(problem_types())
    assert {"/problems/payload-truncated", "/problems/job-finished", "/problems/internal-error"} <= set(listed)
    assert f"/problems/{ScanError.code}" not in listed
    assert {name.removeprefix("/problems/") for name in listed} <= BY_CODE.keys() | {"not-found", "method-not-allowed"}


def test_f15_the_route_that_segments_is_one_that_generators_understand(document: dict[str, Any]) -> None:
    """Both answers are documented, with a job each, and `prefer` is a string: a list made openapi-python-client drop the route."""
    operation = document["paths"]["/v1/segmentations"]["post"]
    answers = operation["responses"]
    (prefer,) = [one for one in operation["parameters"] if (one["in"], one["name"]) == ("header", "prefer")]

    job = {"$ref": "#/components/schemas/Job"}
    assert [answers[code]["content"]["application/json"]["schema"] for code in ("200", "202")] == [job, job]
    assert {kind["type"] for kind in prefer["schema"]["anyOf"]} == {"string", "null"}
