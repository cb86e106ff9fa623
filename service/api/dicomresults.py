"""Results as DICOM objects: content negotiation, and answers with one object or several."""

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


def choose_form(request: Request, result: Path, parameter: _Format | None, offers: Mapping[str, _Format]) -> _Format:
    """Return the format to answer in, as `choose`; DICOM is only offered if the scan was a DICOM series.

    Args:
        request: with or without an `Accept` header.
        result: folder of the result.
        parameter: value of `?format=`, if given.
        offers: format by media type, DICOM's among them.

    Raises:
        NotAcceptable: none of the offered media types is accepted.
        NoSourceSeries: `?format=` names DICOM, but the scan was not a DICOM series.
    """
    if offers[DICOM] == parameter:
        reject_without_series(result)
    if holds_series(result):
        return choose(request, parameter, offers)
    other_offers = {media_type: form for media_type, form in offers.items() if media_type != DICOM}
    return choose(request, parameter, other_offers, note=_FOR_SERIES)


def answer_object(request: Request, services: Services, result: Path, dicom_object: DicomObject) -> Response:
    """Answer with one object of a result, e.g. `seg.dcm`."""
    answer = Answer(request, result, f"{dicom_object}.dcm", DICOM, varies=True)

    def write(scratch: Path) -> Path:
        return derive_dicom(result, scratch, (dicom_object,), services.settings.case_deadline_s)[0]

    return answer.made(f"dicom {dicom_object}", services.state.incoming, write)


def answer_zip(request: Request, services: Services, result: Path, objects: Collection[DicomObject]) -> Response:
    """Answer with several objects of a result in one zip.

    Raises:
        NoSourceSeries: the scan was not a DICOM series.
    """
    reject_without_series(result)

    def write(scratch: Path) -> Path:
        out = scratch / "dicom.zip"
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for path in derive_dicom(result, scratch, objects, services.settings.case_deadline_s):
                archive.writestr(zipfile.ZipInfo(path.name, _EPOCH), path.read_bytes())
        return out

    return Answer(request, result, "dicom.zip", _ZIP).made(f"dicom {' '.join(objects)}", services.state.incoming, write)
