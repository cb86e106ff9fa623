"""A series that OHIF names by its UID -> a stored scan, fetched over DICOMweb from the configured PACS that holds it."""

import tempfile
from pathlib import Path
from typing import Final

from service.errors import SeriesNotFound
from service.pacs.config import read_pacs_file
from service.pacs.selection import Series, reject_unsuitable
from service.pacs.web import DicomWeb, write_zip
from service.pipeline.sandbox import check_sandboxed
from service.schemas import Scan
from service.storage.local import StateDirectory, Upload

_PIECE: Final = 1 << 20


def fetch_scan(state: StateDirectory, pacs_file: Path | None, owner: str, uid: str) -> Scan:
    """Return the scan of a series, which lies complete, checked and flushed to the disk in the state directory.

    Args:
        state: where it is kept.
        pacs_file: the operator's; nothing that a caller sends is an address.
        owner: whose scan it is.
        uid: Series Instance UID (0020,000E).

    Raises:
        SeriesNotFound: no PACS is configured, or none holds the series.
        UnsuitableSeries: it holds results or documents.
        PacsError: a PACS does not do its part.
        ScanError: the series cannot be segmented.
        StorageFull: no space is left.
    """
    webs = [pacs for pacs in read_pacs_file(pacs_file).pacs.values() if pacs.url is not None]
    for pacs in webs:
        with DicomWeb(pacs) as web:
            for series in web.find_series(series=uid):
                reject_unsuitable(series)
                return _kept(state, owner, web, series)
    msg = f"The series was looked for in {len(webs)} PACS and found in none. Its UID is expected in `image`, and the PACS that the viewer shows in CALIBRANT_PACS_FILE."
    raise SeriesNotFound(msg)


def _kept(state: StateDirectory, owner: str, web: DicomWeb, series: Series) -> Scan:
    with tempfile.TemporaryFile(dir=state.incoming) as zipped, Upload(state, owner) as upload:
        write_zip(web.fetch_series(series.study, series.uid), zipped)
        size = zipped.tell()
        zipped.seek(0)
        while piece := zipped.read(_PIECE):
            upload.write(piece)
        upload.flush()
        check_sandboxed(upload.path)
        return Scan(id=upload.keep(), bytes=size)
