from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from service.jobs.pacs.status import DicomOrder, LiveDicom, describe_dicom_job
from service.pacs.ledger import Entry, Ledger
from service.pacs.schemas import DicomJob
from service.schemas import Problem

ORDER = DicomOrder("lab", "clinic", "1.2", "1.2.3", "d" * 64, "m@0", ("seg", "sr"), "archive")
BUSY = Problem(type="/problems/pacs-busy", title="busy", status=502, detail="The PACS is busy.")


def described(
    status: str,
    *states: str,
    live: LiveDicom | None = None,
    output: dict[str, Any] | None = None,
    cancelled: bool = False,
) -> DicomJob:
    """Return the job of a workflow in this state with objects in these states."""
    record = SimpleNamespace(
        workflow_id="a" * 32, status=status, input={"args": [ORDER.document]}, output=output, created_at=1000
    )
    entries = [
        Entry(
            uid=f"1.{n}",
            study="1",
            series="1",
            file="f",
            content="c",
            state=state,
            problem=None if state == "stored" else BUSY,
        )
        for n, state in enumerate(states)
    ]
    ledger = Ledger(owner="lab", destination="archive", entries=entries) if states else None
    return describe_dicom_job(record, live, ledger, None, cancelled=cancelled)  # type: ignore[arg-type]


DONE = {"failure": None}


@pytest.mark.parametrize(
    ("job", "state", "stage"),
    [
        (described("ENQUEUED"), "queued", None),
        (described("PENDING"), "running", "pull"),
        (described("PENDING", live=LiveDicom("segment")), "running", "segment"),
        (described("SUCCESS", output=DONE), "running", "pull"),
        (described("SUCCESS", "stored", "pending", output=DONE), "running", "push"),
        (described("SUCCESS", "stored", "stored", output=DONE), "succeeded", None),
        (described("SUCCESS", "stored", "dead", output=DONE), "failed", None),
        (described("SUCCESS", "pending", output=DONE, cancelled=True), "cancelled", None),
        (described("SUCCESS", "stored", output=DONE, cancelled=True), "succeeded", None),
        (described("CANCELLED"), "cancelled", None),
        (described("MAX_RECOVERY_ATTEMPTS_EXCEEDED"), "failed", None),
        (described("SUCCESS", output={"failure": {"code": "missing-slices", "detail": "3"}}), "failed", None),
    ],
)
def test_the_state_follows_from_workflow_and_ledger(job: DicomJob, state: str, stage: str | None) -> None:
    """A job has succeeded when every object is stored; until then it is running."""
    assert (job.state, job.stage) == (state, stage)


def test_what_keeps_a_job_waiting_is_told() -> None:
    """waits_for is the PACS's answer about the next object, and null afterwards."""
    assert described("SUCCESS", "stored", "pending", output=DONE).waits_for == BUSY
    assert described("PENDING", live=LiveDicom("pull", BUSY)).waits_for == BUSY
    assert described("SUCCESS", "dead", output=DONE).waits_for is None


def test_a_failure_has_its_reason_and_where_to_retry() -> None:
    """The problem is that of the first dead letter or of the segmentation."""
    dead = described("SUCCESS", "dead", output=DONE)
    assert dead.problem == BUSY
    assert dead.links.retry == f"/v1/dicom/deadletters/{'a' * 32}/retry"
    failed = described("SUCCESS", output={"failure": {"code": "missing-slices", "detail": "3"}})
    assert failed.problem is not None
    assert failed.problem.type == "/problems/missing-slices"
    assert failed.links.retry is None


def test_an_order_survives_json() -> None:
    """An order is read back from JSON as an equal value."""
    assert DicomOrder.of_document(ORDER.document) == ORDER


def test_an_order_is_one_job_unless_a_key_tells_otherwise() -> None:
    """Every field of an order, and the key, changes the job's id."""
    assert ORDER.identifier(None) == DicomOrder.of_document(ORDER.document).identifier(None)
    others = [
        DicomOrder.of_document(ORDER.document | {name: "x"})
        for name in ("owner", "pacs", "study", "series", "instances", "model")
    ]
    ids = {order.identifier(None) for order in (ORDER, *others)} | {ORDER.identifier("k")}
    assert len(ids) == 8


def test_only_other_images_of_the_same_series_are_replaced() -> None:
    """A repetition and a result of another model replace nothing."""
    earlier = replace(ORDER, instances="e" * 64, objects=("sr",))
    assert ORDER.replaces(earlier)
    assert not ORDER.replaces(replace(ORDER, objects=("sr",)))
    assert not ORDER.replaces(replace(earlier, model="other@0"))
