"""Results as DICOM objects: which media type asks for them, and the answer that holds one or several."""

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, TypeVar

from fastapi import Request, Response

from service.api.deps import Services
from service.api.files import Answer
from service.api.negotiation import choose
from service.executors.on_demand import derive_dicom
from service.result.files import holds_series, reject_without_series
from service.schemas import DicomObject

DICOM: Final = "application/dicom"
"""Media type of a DICOM file (RFC 3240)."""

_ZIP: Final = "application/zip"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_FOR_SERIES: Final = f"{DICOM} is offered where the scan was a DICOM series."

_Format = TypeVar("_Format", bound=str)


def choose_form(request: Request, result: Path, wanted: _Format | None, offers: Mapping[str, _Format]) -> _Format:
    """Return the format to answer in, as `choose`.

    Args:
        request: with or without an Accept.
        result: folder of the result.
        wanted: what `?format=` says, if anything.
        offers: format by media type, DICOM's among them.

    Raises:
        NotAcceptable: none of the media types is accepted, or only that of DICOM where there was no series.
        NoSourceSeries: `?format=` asks for DICOM where there was no series.
    """
    if offers[DICOM] == wanted:
        reject_without_series(result)
    if holds_series(result):
        return choose(request, wanted, offers)
    there = {media_type: form for media_type, form in offers.items() if media_type != DICOM}
    return choose(request, wanted, there, note=_FOR_SERIES)


def answer_object(request: Request, services: Services, result: Path, dicom_object: DicomObject) -> Response:
    """Answer with one object of a result, `<kind>.dcm`."""
    answer = Answer(request, result, f"{dicom_object}.dcm", DICOM, varies=True)

    def write(scratch: Path) -> Path:
        return derive_dicom(result, scratch, (dicom_object,), services.settings.case_deadline_s)[0]

    return answer.made(f"dicom {dicom_object}", services.state.incoming, write)


def answer_zip(request: Request, services: Services, result: Path, kinds: Collection[DicomObject]) -> Response:
    """Answer with several objects of a result in one zip.

    Raises:
        NoSourceSeries: the scan was no DICOM series.
    """
    reject_without_series(result)

    def write(scratch: Path) -> Path:
        out = scratch / "dicom.zip"
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for path in derive_dicom(result, scratch, kinds, services.settings.case_deadline_s):
                archive.writestr(zipfile.ZipInfo(path.name, _EPOCH), path.read_bytes())
        return out

    return Answer(request, result, "dicom.zip", _ZIP).made(f"dicom {' '.join(kinds)}", services.state.incoming, write)
