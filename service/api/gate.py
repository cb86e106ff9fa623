"""Compares what a scan says about itself with what the model accepts, before a job is made of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from fastapi import Query

from service.bundle.acceptance import Admission, judge_words
from service.bundle.description import BundleDescription
from service.intake.dicom import part10
from service.intake.sandbox import check_sandboxed
from service.schemas import Accept
from service.volume import Stated

AcceptQuery = Annotated[
    Accept, Query(description="`anyway`: also a scan that the model does not accept; its statement is withdrawn.")
]

SuffixQuery = Annotated[
    str | None,
    Query(
        pattern="^[A-Za-z0-9]{1,32}$",
        description="Suffix of the file's BIDS name, e.g. T1w; a form's file name says it.",
    ),
]

ContrastQuery = Annotated[
    str | None, Query(pattern="^[A-Za-z0-9]{1,32}$", description="Value of `ce-` in the file's BIDS name.")
]

_ZIP: Final = b"PK"


def admission_of(accept: Accept, suffix: str | None, ce: str | None, name: Mapping[str, str]) -> Admission:
    """Return what a request says about its scan; what it asks for goes before the name of a form's file."""
    asked = {part: value for part, value in (("suffix", suffix), ("ce", ce)) if value}
    return Admission(tuple(sorted({**name, **asked}.items())), accept)


def reject_unaccepted(bundle: BundleDescription, admission: Admission, stated: Stated) -> None:
    """Refuse a scan that says itself that it is not what the model accepts.

    Raises:
        ScanNotAccepted: what was found, what is accepted, and how to go on.
    """
    judge_words(bundle.card.accepted, admission.with_stated(stated)).reject(admission)


def stated_by(scan: Path) -> Stated:
    """Return what a stored scan says about itself; only DICOM, a file or a zip of files, says anything."""
    with scan.open("rb") as file:
        start = file.read(part10.START_BYTES)
    return check_sandboxed(scan) if start.startswith(_ZIP) or part10.recognise(start) else {}
