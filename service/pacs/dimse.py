"""Client of a PACS without DICOMweb, over DIMSE (PS3.7, PS3.4 annexes B and C): C-FIND, C-MOVE and C-STORE.

The PACS sends the images of a C-MOVE over a second connection that it opens itself: it must know this service's AE
title, machine and `move_port`.
"""

import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association

from service.errors import PacsBadResponse, PacsBusy, PacsError, PacsRefused, PacsUnreachable
from service.pacs.config import Dimse, Pacs
from service.pacs.listener import listen
from service.pacs.selection import Series
from service.storage.scratch import scratch

VERIFICATION: Final = UID("1.2.840.10008.1.1")
_FIND: Final = UID("1.2.840.10008.5.1.4.1.2.2.1")  # Study Root Query/Retrieve Information Model (PS3.4 C.6.2)
_MOVE: Final = UID("1.2.840.10008.5.1.4.1.2.2.2")

TRANSFER_SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # explicit little endian first: the most widely tested
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.91",
)
"""Transfer syntaxes that are received: all that `service.intake.dicom` decodes (PS3.5 annex A)."""

_SUCCESS, _PENDING = 0x0000, (0xFF00, 0xFF01)
_WARNINGS: Final = frozenset({0xB000, 0xB006, 0xB007})
_MOST_SENDING: Final = 4
"""Connections over which a PACS may send the images of a C-MOVE at once."""

_MOVES: Final = threading.Lock()  # all moves share the port of the second connection


class DimsePeer:
    """A PACS over DIMSE, with a connection for each operation; a context manager. Every method may raise a `PacsError`."""

    def __init__(self, pacs: Pacs) -> None:
        """Prepare without sending anything.

        Raises:
            ValueError: the PACS is configured for DICOMweb.
        """
        if pacs.dimse is None:
            msg = "this PACS speaks DICOMweb"
            raise ValueError(msg)
        self._dimse: Dimse = pacs.dimse
        self._pacs = pacs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: no connection stays open."""

    def echo(self) -> None:
        """Check that the PACS answers (C-ECHO)."""
        with self._association(VERIFICATION) as association:
            _reject_status(association.send_c_echo())

    def find_series(self, *, study: str | None = None, series: str | None = None) -> list[Series]:
        """Return the series of a study, or the one with a Series Instance UID."""
        query = _query("SERIES", study, series)
        for name in ("Modality", "SeriesDescription", "BodyPartExamined", "Manufacturer"):
            setattr(query, name, "")
        query.NumberOfSeriesRelatedInstances = None
        return [
            Series(
                study=_text(match, "StudyInstanceUID") or study or "",
                uid=_text(match, "SeriesInstanceUID"),
                modality=_text(match, "Modality"),
                description=_text(match, "SeriesDescription"),
                body_part=_text(match, "BodyPartExamined"),
                manufacturer=_text(match, "Manufacturer"),
                instances=int(match.get("NumberOfSeriesRelatedInstances") or 0) or None,
            )
            for match in self._find(query)
        ]

    def find_instances(self, study: str, series: str) -> list[str]:
        """Return the sorted SOP Instance UIDs of a series."""
        matches = self._find(_query("IMAGE", study, series, ""))
        return sorted({_text(match, "SOPInstanceUID") for match in matches} - {""})

    def holds(self, study: str, series: str, instance: str) -> bool:
        """Return whether the PACS has an object with this SOP Instance UID."""
        matches = self._find(_query("IMAGE", study, series, instance))
        return any(_text(match, "SOPInstanceUID") == instance for match in matches)

    def fetch_series(self, study: str, series: str) -> Iterator[bytes]:
        """Yield the files (PS3.10) of a series."""
        yield from self._move(_query("SERIES", study, series))

    def fetch_instance(self, study: str, series: str, instance: str) -> bytes:
        """Return the file of one object."""
        objects = list(self._move(_query("IMAGE", study, series, instance)))
        if len(objects) != 1:
            msg = f"The PACS sent {len(objects)} objects; one was requested."
            raise PacsBadResponse(msg)
        return objects[0]

    def accepts(self, abstract_syntax: str) -> bool:
        """Return whether the PACS accepts objects of a SOP class."""
        try:
            with self._association(abstract_syntax):
                return True
        except PacsRefused:
            return False

    def store(self, path: Path) -> None:
        """Store one DICOM file.

        Raises:
            PacsBusy: out of resources (0xA7xx); a retry may succeed.
            PacsRefused: any other failure (PS3.4 table B.2-1), or a SOP class that the PACS does not accept.
        """
        meta = dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).file_meta
        with self._association(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) as association:
            _reject_status(association.send_c_store(path))

    def _find(self, query: Dataset) -> list[Dataset]:
        matches = []
        with self._association(_FIND) as association:
            for status, identifier in association.send_c_find(query, _FIND):
                if status.get("Status") in _PENDING and identifier is not None:
                    matches.append(identifier)
                else:
                    _reject_status(status)
        return matches

    def _move(self, query: Dataset) -> Iterator[bytes]:
        """Yield the files that a C-MOVE delivers; all of them are first received on disk."""
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            with _MOVES, self._receiving(Path(folder)):
                self._ask_for(query)
            for path in sorted(Path(folder).iterdir()):
                yield path.read_bytes()

    def _ask_for(self, query: Dataset) -> None:
        with self._association(_MOVE) as association:
            for status, _ in association.send_c_move(query, self._dimse.our_aet, _MOVE):
                if status.get("Status") not in _PENDING:
                    _reject_status(status)

    @contextmanager
    def _receiving(self, folder: Path) -> Iterator[None]:
        """Receive images for as long as the block runs."""

        def keep(event: evt.Event) -> int:
            content = event.encoded_dataset()
            (folder / f"{len(list(folder.iterdir())):06}.dcm").write_bytes(content)
            return _SUCCESS

        receiver = AE(ae_title=self._dimse.our_aet)
        receiver.network_timeout = receiver.dimse_timeout = self._pacs.timeout_s
        receiver.require_called_aet = True
        for context in AllStoragePresentationContexts:
            receiver.add_supported_context(str(context.abstract_syntax), list(TRANSFER_SYNTAXES))
        try:
            listen(
                receiver, (self._dimse.move_host, self._dimse.move_port), [(evt.EVT_C_STORE, keep)], most=_MOST_SENDING
            )
        except OSError as error:
            msg = f"Port {self._dimse.move_port}, where the images of a C-MOVE are received, is taken. Set move_port to a free one."
            raise PacsUnreachable(msg) from error
        try:
            yield
        finally:
            receiver.shutdown()

    @contextmanager
    def _association(self, abstract_syntax: str, transfer_syntax: str | None = None) -> Iterator[Association]:
        """Yield an association (PS3.8) with one presentation context."""
        ours = AE(ae_title=self._dimse.our_aet)
        ours.connection_timeout = min(5.0, self._pacs.timeout_s)
        ours.acse_timeout = ours.dimse_timeout = ours.network_timeout = self._pacs.timeout_s
        ours.add_requested_context(abstract_syntax, transfer_syntax)
        tls: Any = (self._dimse.tls.context(), self._dimse.host) if self._dimse.tls else None
        association = ours.associate(self._dimse.host, self._dimse.port, ae_title=self._dimse.aet, tls_args=tls)
        if not association.is_established:
            raise _why_not(association)
        try:
            yield association
        finally:
            association.release() if association.is_established else association.abort()


def _why_not(association: Association) -> PacsError:
    if association.is_rejected:
        msg = "The PACS rejected the association. It must know our AE title and this machine's address, and be called by its own AE title."
        return PacsRefused(msg)
    if association.rejected_contexts:
        msg = "The PACS does not take this kind of object in this transfer syntax. Choose other objects, or let it take them."
        return PacsRefused(msg)
    msg = "The PACS opened no association. It is tried again; check whether it runs, and its host and port."
    return PacsUnreachable(msg)


def _reject_status(status: Dataset) -> None:
    """Raise the error for the status of a response (PS3.7 annex C); a missing status means a lost connection."""
    code = status.get("Status")
    if code == _SUCCESS or code in _WARNINGS:
        return
    if code is None:
        msg = "The PACS closed the association early, or took too long. It is tried again."
        raise PacsUnreachable(msg)
    if code & 0xFF00 == 0xA700:  # noqa: PLR2004 - out of resources
        msg = f"The PACS is out of resources (status 0x{code:04X}). It is tried again."
        raise PacsBusy(msg)
    msg = f"The PACS refused (status 0x{code:04X}). Trying again will not help; the log of the PACS says why."
    raise PacsRefused(msg)


def _query(level: str, study: str | None, series: str | None, instance: str | None = None) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    query.StudyInstanceUID, query.SeriesInstanceUID = study or "", series or ""
    if instance is not None:
        query.SOPInstanceUID = instance
    return query


def _text(dataset: Dataset, name: str) -> str:
    with warnings.catch_warnings(action="ignore"):
        return str(dataset.get(name) or "")
