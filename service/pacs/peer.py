"""The interface of a PACS, independent of its protocol."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from service.pacs.config import Pacs
from service.pacs.dimse import DimsePeer
from service.pacs.selection import Series
from service.pacs.web import DicomWeb


class SeriesSource(Protocol):
    """A source of series: a `Peer` or `service.pacs.spool.Spool`. Every method may raise a `PacsError`."""

    def __enter__(self) -> Self:
        """Return the source itself."""
        ...

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End the connection."""
        ...

    def find_series(self, *, study: str | None = None, series: str | None = None) -> list[Series]:
        """Return the series of a study, or the one with a Series Instance UID."""
        ...

    def find_instances(self, study: str, series: str) -> list[str]:
        """Return the sorted SOP Instance UIDs of a series."""
        ...

    def fetch_series(self, study: str, series: str) -> Iterator[bytes]:
        """Yield the files of a series."""
        ...


class Peer(SeriesSource, Protocol):
    """A PACS: `service.pacs.web.DicomWeb` or `service.pacs.dimse.DimsePeer`."""

    def holds(self, study: str, series: str, instance: str) -> bool:
        """Return whether the PACS has an object with this SOP Instance UID."""
        ...

    def fetch_instance(self, study: str, series: str, instance: str) -> bytes:
        """Return the file of one object."""
        ...

    def store(self, path: Path) -> None:
        """Store one DICOM file."""
        ...


def open_peer(pacs: Pacs) -> Peer:
    """Return a connection to a PACS without sending anything.

    Raises:
        SettingsError: a secret or a certificate cannot be read.
    """
    return DimsePeer(pacs) if pacs.dimse else DicomWeb(pacs)
