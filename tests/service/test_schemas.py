import datetime as dt
from typing import Any, get_args

import pytest
from pydantic import ValidationError

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


def _kinds(root: type[Wire]) -> list[type[Wire]]:
    return [kind for child in root.__subclasses__() for kind in (child, *_kinds(child))]


@pytest.mark.parametrize("kind", _kinds(Wire))
def test_wire_types_are_immutable(kind: type[Wire]) -> None:
    """What was answered is not changed afterwards, and an unknown field is an error in all but foreign problems."""
    assert kind.model_config["frozen"] is True
    assert kind.model_config["extra"] == ("ignore" if kind is Problem else "forbid")


@pytest.mark.parametrize(("kind", "content"), [(Summary, SUMMARY), (Job, JOB), (Statement, STATEMENT)])
def test_json_leads_back_to_the_same_value(kind: type[Wire], content: dict[str, Any]) -> None:
    """What one side writes the other reads as the same value."""
    value = kind.model_validate(content)

    assert kind.model_validate_json(value.model_dump_json()) == value


def test_every_summary_says_research_use_only() -> None:
    """The notice is there without anybody asking for it."""
    summary = Summary.model_validate(SUMMARY)

    assert summary.research_use_only == RESEARCH_USE_ONLY
    assert "not for diagnosis" in RESEARCH_USE_ONLY


def test_a_statement_names_its_basis() -> None:
    """Nothing but the calibration card can stand behind a statement."""
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
    """States, stages, priorities and outputs are those that are documented."""
    with pytest.raises(ValidationError):
        Job.model_validate(JOB | field)


def test_stages_are_in_the_order_of_the_pipeline() -> None:
    """The names are the ones used everywhere."""
    assert get_args(Stage) == ("decode", "locate", "preprocess", "infer", "calibrate", "encode", "store")
    CaseResult(
        model="m", device="cpu", engine="e", precision="p", seconds=dict.fromkeys(get_args(Stage), 0.1), files={}
    )


def test_foreign_members_of_a_problem_are_ignored() -> None:
    """RFC 9457 allows extensions: a client that does not know them reads the rest."""
    problem = Problem.model_validate(
        {"type": "/problems/x", "title": "X", "status": 422, "detail": "Do.", "instance": "/1"}
    )

    assert (problem.status, problem.detail) == (422, "Do.")


def test_links_of_an_unfinished_job_are_null() -> None:
    """Only the job itself can be fetched."""
    assert {name for name, link in Links(self="/here").model_dump().items() if link} == {"self"}


def test_a_broken_model_has_a_reason_and_nothing_else() -> None:
    """What cannot be served is listed with the reason why."""
    found = Model(name="broken", ready=False, why_not="No manifest.").model_dump(exclude_none=True)

    assert found == {"name": "broken", "ready": False, "why_not": "No manifest."}


def test_finished_states_are_those_that_a_job_does_not_leave() -> None:
    """All but waiting and running."""
    assert {*FINISHED} == {*get_args(State)} - {"queued", "running"}
