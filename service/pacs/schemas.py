"""Wire types of the PACS routes."""

import datetime as dt
from typing import Annotated, Literal

from pydantic import StringConstraints

from service.schemas import DicomObject, Link, Problem, State, StatementStatus, Wire

DicomStage = Literal["pull", "segment", "build", "push"]
"""Stage of a DICOM job: fetching the series, waiting for its segmentation, making objects, storing them."""


class DeliveredObject(Wire):
    """One object on its way to a PACS."""

    uid: str
    """SOP Instance UID (0008,0018)."""
    state: Literal["pending", "stored", "dead"]
    """dead: given up; listed by `/v1/dicom/deadletters`."""
    attempts: int
    problem: Problem | None
    """Reason why the last attempt failed."""


class DicomLinks(Wire):
    """Links of a DICOM job."""

    self: Link
    segmentation: Link | None
    """The segmentation job, once it exists; its results can be fetched there, too."""
    retry: Link | None
    """Where to retry dead letters, if there are any."""


class DicomJob(Wire):
    """A job that fetches a series from a PACS, segments it and stores the results in a PACS."""

    id: str
    state: State
    """succeeded: every object is stored and was verified; failed: see `problem` and `objects`."""
    stage: DicomStage | None
    """Current stage while it runs."""
    pacs: str
    study: str
    series: str
    instances: str
    """SHA-256 of the sorted SOP Instance UIDs, one per line: other images make another job."""
    model: str
    outputs: list[DicomObject]
    destination: str
    created: dt.datetime
    waits_for: Problem | None
    """Reason why it is waiting at the moment, e.g. a PACS that does not answer."""
    problem: Problem | None
    """Reason why it failed."""
    statement: StatementStatus | None = None
    """Verdict on the answer, once there is one; of a withdrawn one a PACS gets the report only, unless it is configured."""
    objects: list[DeliveredObject]
    links: DicomLinks


class DicomJobList(Wire):
    """DICOM jobs, newest first."""

    jobs: list[DicomJob]


class PacsCheck(Wire):
    """One check of a PACS."""

    name: str
    """Operation that was tried, e.g. C-ECHO, QIDO-RS, WADO-RS or STOW-RS."""
    ok: bool
    found: str
    """Outcome, and what to do if it is wrong."""


class PacsHealth(Wire):
    """Whether a PACS can be used."""

    pacs: str
    ok: bool
    circuit: Literal["closed", "open"]
    """open: it failed several times in a row and is not contacted for a while."""
    checks: list[PacsCheck]


class PacsNames(Wire):
    """The configured PACS."""

    pacs: list[str]


class ArrivedSeries(Wire):
    """A series announced by one of Orthanc's scripts: a hint, which is looked up before anything is done."""

    series: Annotated[str, StringConstraints(pattern=r"^[0-9.]{1,64}$")]
    """Series Instance UID."""
