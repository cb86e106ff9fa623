import datetime as dt
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from service.errors import BY_CODE, CalibrantError, ServerProblem
from service.schemas import (
    FINISHED,
    RESEARCH_USE_ONLY,
    CaseResult,
    Job,
    Links,
    Model,
    Problem,
    Stage,
    State,
    Statement,
    Summary,
    Wire,
    problem_of,
)

STATEMENT: dict[str, Any] = {
    "status": "holds",
    "text": "On 2 cases.",
    "reasons": [],
    "dataset": "two boxes",
    "split": "all",
    "protocol": "held-out",
    "n_persons": 2,
    "n_cases": 2,
    "date": "2026-01-31",
    "engine": "torch",
    "precision": "fp32",
    "figures": {"dsc": {"value": 0.9, "low": None, "high": 1.0}},
}

SUMMARY: dict[str, Any] = {
    "model": "tiny@0",
    "structures": [{"label": 1, "name": "front", "voxels": 0, "volume_ml": 0.0, "mean_confidence": None}],
    "foreground_confidence": None,
    "statement": STATEMENT,
    "warnings": [],
}

JOB: dict[str, Any] = {
    "id": "7f",
    "state": "queued",
    "model": "tiny@0",
    "scan": 64 * "0",
    "priority": "normal",
    "outputs": ["mask", "summary"],
    "created": "2026-01-31T12:00:00Z",
    "finished": None,
    "queue_position": 2,
    "eta_s": 12.5,
    "attempts": 0,
    "device": None,
    "stage": None,
    "progress": 0.0,
    "seconds": {},
    "problem": None,
    "links": {"self": "/v1/segmentations/7f"},
}


def _subclasses(root: type[Wire]) -> list[type[Wire]]:
    return [wire for child in root.__subclasses__() for wire in (child, *_subclasses(child))]


@pytest.mark.parametrize("wire", _subclasses(Wire))
def test_wire_types_are_immutable(wire: type[Wire]) -> None:
    """An answer cannot be changed afterwards, and only a problem document may have unknown fields."""
    assert wire.model_config["frozen"] is True
    assert wire.model_config["extra"] == ("ignore" if wire is Problem else "forbid")


@pytest.mark.parametrize(("wire", "content"), [(Summary, SUMMARY), (Job, JOB), (Statement, STATEMENT)])
def test_a_value_survives_json(wire: type[Wire], content: dict[str, Any]) -> None:
    """A value written as JSON is read back as an equal value."""
    value = wire.model_validate(content)

    assert wire.model_validate_json(value.model_dump_json()) == value


def test_every_summary_says_research_use_only() -> None:
    """A summary carries the notice by default."""
    summary = Summary.model_validate(SUMMARY)

    assert summary.research_use_only == RESEARCH_USE_ONLY
    assert "not for diagnosis" in RESEARCH_USE_ONLY


def test_a_statement_names_its_basis() -> None:
    """The only basis of a statement is the calibration card."""
    statement = Statement.model_validate(STATEMENT)
    assert statement.basis == "calibration card"
    assert statement.date == dt.date(2026, 1, 31)
    with pytest.raises(ValidationError):
        Statement.model_validate(STATEMENT | {"basis": "this image"})


@pytest.mark.parametrize(
    "field",
    [
        {"state": "lost"},
        {"stage": "think"},
        {"seconds": {"think": 1}},
        {"priority": "at once"},
        {"outputs": ["everything"]},
        {"extra": 1},
    ],
)
def test_a_job_has_no_other_words(field: dict[str, Any]) -> None:
    """A job rejects states, stages, priorities and outputs that are not documented."""
    with pytest.raises(ValidationError):
        Job.model_validate(JOB | field)


def test_stages_are_in_the_order_of_the_pipeline() -> None:
    """The wire types list the stages in the order in which they run."""
    assert get_args(Stage) == ("decode", "locate", "preprocess", "infer", "calibrate", "encode", "store")
    CaseResult(
        model="m", device="cpu", engine="e", precision="p", seconds=dict.fromkeys(get_args(Stage), 0.1), files={}
    )


def test_foreign_members_of_a_problem_are_ignored() -> None:
    """RFC 9457 allows extensions: a client ignores those that it does not know."""
    problem = Problem.model_validate(
        {"type": "/problems/x", "title": "X", "status": 422, "detail": "Do.", "instance": "/1"}
    )

    assert (problem.status, problem.detail) == (422, "Do.")


@pytest.mark.parametrize("error_class", [error for error in BY_CODE.values() if error is not ServerProblem])
def test_every_error_has_a_problem_document(error_class: type[CalibrantError]) -> None:
    """Type, title and status are those of the class; the detail is that of the error."""
    problem = problem_of(error_class("What to do."))

    assert (problem.type, problem.title) == (f"/problems/{error_class.code}", error_class.title)
    assert (problem.status, problem.detail) == (error_class.status, "What to do.")


def test_a_problem_that_a_server_sent_is_passed_on() -> None:
    """The type stays the server's: `server-problem` would say nothing about the cause."""
    error = ServerProblem("Do.", 422, problem_type="/problems/empty-file", title="The file is empty")

    assert problem_of(error) == Problem(
        type="/problems/empty-file", title="The file is empty", status=422, detail="Do."
    )


def test_links_of_an_unfinished_job_are_null() -> None:
    """An unfinished job links only to itself."""
    assert {name for name, link in Links(self="/here").model_dump().items() if link} == {"self"}


def test_a_broken_model_has_a_reason_and_nothing_else() -> None:
    """A model that cannot be served is listed with the reason only."""
    listed = Model(name="broken", ready=False, why_not="No manifest.").model_dump(exclude_none=True)

    assert listed == {"name": "broken", "ready": False, "why_not": "No manifest."}


def test_finished_states_are_those_that_a_job_does_not_leave() -> None:
    """Every state except queued and running is final."""
    assert {*FINISHED} == {*get_args(State)} - {"queued", "running"}
