"""Fetches a series, which OHIF names by its UID, from the configured PACS that holds it."""

from service.errors import SeriesNotFound
from service.intake.sandbox import check_sandboxed
from service.pacs.config import PacsFile
from service.pacs.peer import Peer, open_peer
from service.pacs.selection import Series, reject_unsuitable
from service.pacs.web import write_zip
from service.schemas import Scan
from service.storage.local import StateDirectory, Upload


def fetch_scan(state: StateDirectory, file: PacsFile, owner: str, uid: str) -> Scan:
    """Store a series as a scan, complete, checked and flushed to the disk, and return it.

    Args:
        state: where the scan is stored.
        file: the configured PACS, queried in turn; nothing that a caller sends is used as an address.
        owner: whose scan it is.
        uid: Series Instance UID (0020,000E).

    Raises:
        SeriesNotFound: no PACS is configured, or none holds the series.
        UnsuitableSeries: it holds results or documents.
        PacsError: a PACS fails.
        ScanError: the series cannot be segmented.
        StorageFull: no space is left.
    """
    for pacs in file.pacs.values():
        with open_peer(pacs) as peer:
            for series in peer.find_series(series=uid):
                reject_unsuitable(series)
                return _kept(state, owner, peer, series)
    msg = f"The series was looked for in {len(file.pacs)} PACS and found in none. Give the UID of a series in `image`, and list the PACS that the viewer shows in CALIBRANT_PACS_FILE."
    raise SeriesNotFound(msg)


def _kept(state: StateDirectory, owner: str, peer: Peer, series: Series) -> Scan:
    with Upload(state, owner) as upload:
        write_zip(peer.fetch_series(series.study, series.uid), upload)
        upload.flush()
        check_sandboxed(upload.path)
        size = upload.path.stat().st_size
        return Scan(id=upload.keep(), bytes=size)
