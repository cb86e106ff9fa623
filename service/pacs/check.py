"""Test whether a PACS can be used, for `calibrant pacs test` and `POST /v1/dicom/pacs/{name}/test`.

Nothing is stored or changed.
"""

from collections.abc import Callable, Iterator

from service.errors import CalibrantError, PacsBadResponse
from service.pacs.changes import Orthanc
from service.pacs.config import Pacs
from service.pacs.dimse import DimsePeer
from service.pacs.schemas import PacsCheck
from service.pacs.web import DicomWeb

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
_NO_SERIES = "2.25.1"


def examine_pacs(pacs: Pacs) -> list[PacsCheck]:
    """Return the checks of a PACS in the order in which they were made; if it does not answer, the rest is skipped."""
    checks = list(_dimse(pacs) if pacs.dimse else _web(pacs))
    if pacs.orthanc is not None and all(check.ok for check in checks):
        checks.append(_tried("Orthanc /changes", lambda: _changes(pacs)))
    return checks


def _web(pacs: Pacs) -> Iterator[PacsCheck]:
    with DicomWeb(pacs) as web:
        yield (query := _tried("QIDO-RS", lambda: _counted(web)))
        if not query.ok:
            return
        yield _tried("WADO-RS", lambda: _fetched(web))
        yield _tried("STOW-RS", lambda: _allowed(web))


def _dimse(pacs: Pacs) -> Iterator[PacsCheck]:
    peer = DimsePeer(pacs)
    yield (echo := _tried("C-ECHO", lambda: _echoed(peer)))
    if not echo.ok:
        return
    yield _tried("C-FIND", lambda: _found(peer))
    yield _tried("C-STORE", lambda: _accepted(peer))


def _tried(name: str, work: Callable[[], str]) -> PacsCheck:
    try:
        return PacsCheck(name=name, ok=True, found=work())
    except CalibrantError as error:
        return PacsCheck(name=name, ok=False, found=error.detail)


def _counted(web: DicomWeb) -> str:
    return "answers; it holds images" if web.any_series() else "answers; it holds nothing yet"


def _fetched(web: DicomWeb) -> str:
    series = web.any_series()
    if series is None:
        return "not tried: it holds nothing yet"
    instances = web.find_instances(series.study, series.uid)
    size = len(web.fetch_instance(series.study, series.uid, instances[0]))
    return f"gives an object of {size} bytes"


def _allowed(web: DicomWeb) -> str:
    if web.may_store():
        return "may be used; nothing was stored"
    msg = (
        "The PACS does not let this service store. Give its user that right, and check whether STOW-RS is switched on."
    )
    raise PacsBadResponse(msg)


def _changes(pacs: Pacs) -> str:
    orthanc = Orthanc(pacs)
    try:
        return f"can be followed, from {orthanc.end()} on"
    finally:
        orthanc.close()


def _echoed(peer: DimsePeer) -> str:
    peer.echo()
    return "answers"


def _found(peer: DimsePeer) -> str:
    peer.find_series(study=_NO_SERIES, series=_NO_SERIES)
    return "answers"


def _accepted(peer: DimsePeer) -> str:
    sop_classes = {"segmentations": _SEGMENTATION, "reports": _REPORT}
    if missing := [name for name, sop_class in sop_classes.items() if not peer.accepts(sop_class)]:
        msg = f"The PACS takes no {' and no '.join(missing)}. Let it take them from this service."
        raise PacsBadResponse(msg)
    return "takes segmentations and reports; nothing was stored"
