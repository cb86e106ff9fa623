"""What a caller may see of a job: DBOS's record and the live stage, in our words."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from dbos import WorkflowStatus

from service.errors import BY_CODE, CalibrantError, JobAbandoned
from service.schemas import CaseResult, Job, Links, Problem, Stage, State
from service.storage.local import RESULT


@dataclass(slots=True)
class Live:
    """What a running job is doing at the moment."""

    stage: Stage | None = None
    progress: float = 0.0


def describe_job(status: WorkflowStatus, live: Live, result: Path | None) -> Job:
    """Return the job of a workflow.

    Args:
        status: DBOS's record; its input is ``(scan sha256, model identity)``, its output a failure or None.
        live: the stage that runs.
        result: folder of the published result, if there is one.
    """
    identifier = status.workflow_id
    model = (status.input or {"args": ("", "")})["args"][1]
    state, problem = _state(status)
    here = f"/v1/segmentations/{identifier}"
    links = Links(self=here)
    seconds: dict[Stage, float] = {}
    if state == "succeeded" and result is not None:
        links = Links(self=here, mask=f"{here}/mask", confidence=f"{here}/confidence", summary=f"{here}/summary")
        seconds = CaseResult.model_validate_json((result / RESULT).read_bytes()).seconds
    running = state == "running"
    return Job(
        id=identifier,
        state=state,
        model=model,
        created=dt.datetime.fromtimestamp((status.created_at or 0) / 1000, dt.UTC),
        stage=live.stage if running else None,
        progress=live.progress if running else float(state == "succeeded"),
        seconds=seconds,
        problem=problem,
        links=links,
    )


def problem_of(error: CalibrantError) -> Problem:
    """Return the RFC 9457 problem document of an error."""
    return Problem(type=f"/problems/{error.code}", title=error.title, status=error.status, detail=error.detail)


def _state(status: WorkflowStatus) -> tuple[State, Problem | None]:
    if status.status == "SUCCESS":
        if status.output is None:
            return "succeeded", None
        failure = BY_CODE[status.output["code"]](status.output["detail"])
        return "failed", problem_of(failure)
    if status.status in ("ENQUEUED", "DELAYED"):
        return "queued", None
    if status.status == "PENDING":
        return "running", None
    return "failed", problem_of(
        JobAbandoned("The service was interrupted too often while it worked on this job. Send the scan again.")
    )
