"""Wire types of the routes about a PACS."""

import datetime as dt
from typing import Annotated, Literal

from pydantic import StringConstraints

from service.schemas import DicomObject, Problem, State, Wire

DicomStage = Literal["pull", "segment", "build", "push"]
"""What a DICOM job is doing: fetching the series, waiting for its segmentation, making objects, storing them."""


class DeliveredObject(Wire):
    """One object on its way to a PACS."""

    uid: str
    """SOP Instance UID (0008,0018)."""
    state: Literal["pending", "stored", "dead"]
    """dead: it was given up; `/v1/dicom/deadletters` lists it."""
    attempts: int
    problem: Problem | None
    """Why the last attempt failed."""


class DicomLinks(Wire):
    """Where to go on from a DICOM job."""

    self: str
    segmentation: str | None
    """The ordinary job, once there is one; its results may be fetched there, too."""
    retry: str | None
    """Where dead letters are tried again, if there are any."""


class DicomJob(Wire):
    """A series of a PACS that is segmented and whose results are stored in a PACS."""

    id: str
    state: State
    """succeeded: every object is stored and was found again; failed: see `problem` and `objects`."""
    stage: DicomStage | None
    """What is being done, while it runs."""
    pacs: str
    study: str
    series: str
    instances: str
    """SHA-256 of the sorted SOP Instance UIDs, a line each: other images are another job."""
    model: str
    outputs: list[DicomObject]
    destination: str
    created: dt.datetime
    waits_for: Problem | None
    """What keeps it waiting at the moment, e.g. a PACS that does not answer."""
    problem: Problem | None
    """Why it failed."""
    objects: list[DeliveredObject]
    links: DicomLinks


class DicomJobList(Wire):
    """DICOM jobs, the newest first."""

    jobs: list[DicomJob]


class PacsCheck(Wire):
    """One thing that was tried with a PACS."""

    name: str
    """C-ECHO, QIDO-RS, WADO-RS, STOW-RS and the like."""
    ok: bool
    found: str
    """What was found, and what to do where that is wrong."""


class PacsHealth(Wire):
    """Whether a PACS can be used."""

    pacs: str
    ok: bool
    circuit: Literal["closed", "open"]
    """open: it failed so often in a row that it is left alone for a while."""
    checks: list[PacsCheck]


class PacsNames(Wire):
    """The PACS that are configured."""

    pacs: list[str]


class ArrivedSeries(Wire):
    """What Orthanc's scripts tell of: a hint, which is looked up before anything is done."""

    series: Annotated[str, StringConstraints(pattern=r"^[0-9.]{1,64}$")]
    """Series Instance UID."""
