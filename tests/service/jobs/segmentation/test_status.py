import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from dbos import WorkflowStatus

from service.bundle.acceptance import Admission
from service.errors import JobAbandoned, NonFiniteVoxels
from service.jobs.segmentation.status import PRIORITIES, Live, Place, WorkflowInput, describe_job
from service.result.files import RESULT
from service.schemas import CaseResult, Links, problem_of

HERE = "/v1/segmentations/7f"


def _status(status: str, **fields: Any) -> WorkflowStatus:  # noqa: ANN401 - whatever DBOS's field holds
    record = WorkflowStatus()
    record.workflow_id = "7f"
    record.created_at = 1_700_000_000_500
    inputs = {"args": ["they", "scan", "model@0", ["mask", "summary"]], "kwargs": {}}
    defaults = {"input": inputs, "output": None, "completed_at": None, "priority": 2, "recovery_attempts": 1}
    for name, value in {"status": status, **defaults, **fields}.items():
        setattr(record, name, value)
    return record


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Return the folder of a published result."""
    seconds = {"decode": 0.5, "infer": 2.0}
    content = CaseResult(model="model@0", device="cpu", engine="torch", precision="fp32", seconds=seconds, files={})
    (tmp_path / RESULT).write_text(content.model_dump_json())
    return tmp_path


def test_a_succeeded_job_leads_to_its_files(result: Path) -> None:
    """A succeeded job has links to its outputs, its device and seconds, progress 1 and no stage."""
    job = describe_job(_status("SUCCESS", completed_at=1_700_000_002_000), Live("store", 0.5), Place(), result)

    assert (job.id, job.state, job.model, job.stage, job.progress) == ("7f", "succeeded", "model@0", None, 1.0)
    assert job.seconds == {"decode": 0.5, "infer": 2.0}
    assert (job.links.self, job.links.mask, job.links.summary) == (HERE, f"{HERE}/mask", f"{HERE}/summary")
    assert (job.links.events, job.links.cancel, job.links.confidence) == (None, None, None)
    assert job.problem is None
    assert (job.scan, job.device, job.outputs, job.attempts) == ("scan", "cpu", ["mask", "summary"], 1)
    assert job.created == dt.datetime(2023, 11, 14, 22, 13, 20, 500_000, dt.UTC)
    assert job.finished == dt.datetime(2023, 11, 14, 22, 13, 22, 0, dt.UTC)


def test_a_succeeded_job_whose_result_was_removed_has_no_links() -> None:
    """Missing results are not linked."""
    job = describe_job(_status("SUCCESS"), Live(), Place(), None)

    assert (job.state, job.links, job.seconds) == ("succeeded", Links(self=HERE), {})


@pytest.mark.parametrize(
    ("status", "state", "stage", "progress"),
    [
        ("ENQUEUED", "queued", None, 0.0),
        ("DELAYED", "queued", None, 0.0),
        ("PENDING", "running", "infer", 0.25),
    ],
)
def test_an_unfinished_job_shows_its_stage_only_while_it_runs(
    status: str, state: str, stage: str | None, progress: float
) -> None:
    """A queued job shows no stage, not even that of an interrupted attempt."""
    job = describe_job(_status(status), Live("infer", 0.25), Place(), None)

    assert (job.state, job.stage, job.progress, job.problem) == (state, stage, progress, None)
    assert job.links == Links(self=HERE, events=f"{HERE}/events", cancel=f"{HERE}/cancel")
    assert job.attempts == (0 if state == "queued" else 1)


def test_a_running_job_shows_no_links_to_an_early_result(result: Path) -> None:
    """Between publishing and DBOS's record, the job still counts as running."""
    job = describe_job(_status("PENDING"), Live("store", 0.0), Place(), result)

    assert (job.state, job.links, job.seconds) == (
        "running",
        Links(self=HERE, events=f"{HERE}/events", cancel=f"{HERE}/cancel"),
        {},
    )


def test_a_failure_is_the_problem_of_its_error() -> None:
    """The recorded code and detail become the problem document of that error class."""
    output = {"attempts": 1, "failure": {"code": "non-finite-voxels", "detail": "3 of 9 voxels."}}
    job = describe_job(_status("SUCCESS", output=output), Live("decode", 0.0), Place(), None)

    assert (job.state, job.stage, job.progress) == ("failed", None, 0.0)
    assert job.problem == problem_of(NonFiniteVoxels("3 of 9 voxels."))


@pytest.mark.parametrize("status", ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_a_job_that_dbos_gave_up_is_abandoned(status: str) -> None:
    """A workflow that ended without an outcome is a failed job, not one that runs for ever."""
    job = describe_job(_status(status), Live(), Place(), None)

    assert job.state == "failed"
    assert job.problem is not None
    assert job.problem.type == f"/problems/{JobAbandoned.code}"
    assert "Send the scan again" in job.problem.detail


def test_a_cancelled_job_is_no_failure(result: Path) -> None:
    """A cancelled job has its own state and links no result, not even one published at the last moment."""
    job = describe_job(_status("CANCELLED"), Live("infer", 0.5), Place(), result)

    assert (job.state, job.progress, job.stage, job.links) == ("cancelled", 0.0, None, Links(self=HERE))
    assert job.problem is not None
    assert (job.problem.type, job.problem.status) == ("/problems/job-cancelled", 409)


@pytest.mark.parametrize(("number", "word"), [(1, "urgent"), (2, "normal"), (3, "background"), (0, "normal")])
def test_a_priority_is_a_word(number: int, word: str) -> None:
    """DBOS's numbers are not shown; a job without one is normal."""
    assert describe_job(_status("ENQUEUED", priority=number), Live(), Place(), None).priority == word
    assert sorted(PRIORITIES, key=lambda name: PRIORITIES[name]) == ["urgent", "normal", "background"]


def test_the_place_is_that_of_the_queue() -> None:
    """Position and estimate are passed on unchanged."""
    job = describe_job(_status("ENQUEUED"), Live(), Place(3, 12.5), None)

    assert (job.queue_position, job.eta_s) == (3, 12.5)


def test_attempts_count_through_restarts() -> None:
    """Attempts of earlier processes count: one before, then three, are four."""
    job = describe_job(
        _status("SUCCESS", recovery_attempts=2, output={"attempts": 3, "failure": None}), Live(), Place(), None
    )

    assert job.attempts == 4


def test_an_order_is_what_the_workflow_was_given() -> None:
    """Arguments and order are converted into each other; a workflow without input belongs to nobody."""
    order = WorkflowInput("they", "scan", "model@0", ("mask", "summary"))

    assert order.arguments == ("they", "scan", "model@0", ["mask", "summary"])
    assert WorkflowInput.of(_status("PENDING")) == order
    assert WorkflowInput.of(_status("PENDING", input=None)) == WorkflowInput("", "", "", ())


def test_a_job_of_an_earlier_version_says_nothing_about_its_scan() -> None:
    """Its record has four arguments; those of a job that says no more have the same form."""
    order = WorkflowInput.of(_status("SUCCESS"))

    assert order == WorkflowInput("they", "scan", "model@0", ("mask", "summary"))
    assert order.arguments == ("they", "scan", "model@0", ["mask", "summary"])


def test_what_a_caller_says_about_a_scan_is_part_of_the_order() -> None:
    """It comes back from the record, as JSON keeps it."""
    admission = Admission((("suffix", "T2w"),), "anyway")
    order = WorkflowInput("they", "scan", "model@0", ("mask",), admission)
    recorded = json.loads(json.dumps({"args": order.arguments}))

    assert WorkflowInput.of(_status("SUCCESS", input=recorded)) == order
