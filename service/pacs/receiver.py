"""A C-STORE SCP (PS3.4 annex B) in a process of its own: images are on the disk before the sender is told that they are.

It knows neither models nor jobs: the service follows the spool. What is not on the list of AE titles is rejected.
"""

import resource
import shutil
import threading
from pathlib import Path
from typing import Any, Final

import structlog
from pynetdicom import AE, AllStoragePresentationContexts, evt

from service.pacs.config import Receiver
from service.pacs.dimse import TRANSFER_SYNTAXES, VERIFICATION
from service.pacs.selection import NEVER
from service.pacs.spool import Spool

log = structlog.get_logger(__name__)

MEMORY_BYTES: Final = 8 << 30
"""Address space of the process: a length that a sender claims is not believed beyond it."""

NETWORK_TIMEOUT_S: Final = 60.0
REQUEST_TIMEOUT_S: Final = 5.0
"""Seconds in which a caller must say what it wants: until then it holds one of few places."""

_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000


def start_receiver(receiver: Receiver, root: Path) -> AE:
    """Listen, in threads of this process, until `shutdown` of what is returned.

    Args:
        receiver: who may send, and where to.
        root: folder of the spool.

    Raises:
        SettingsError: a certificate cannot be used.
        OSError: the port is taken.
    """
    root.mkdir(parents=True, exist_ok=True)
    ours = AE(ae_title=receiver.aet)
    ours.require_called_aet = True
    ours.require_calling_aet = list(receiver.allowed)
    ours.maximum_associations = receiver.most_associations
    ours.network_timeout = ours.dimse_timeout = NETWORK_TIMEOUT_S
    ours.acse_timeout = REQUEST_TIMEOUT_S
    ours.add_supported_context(VERIFICATION)
    for context in AllStoragePresentationContexts:
        ours.add_supported_context(str(context.abstract_syntax), list(TRANSFER_SYNTAXES))
    tls: Any = receiver.tls.context() if receiver.tls else None
    handlers: Any = [(evt.EVT_C_STORE, _keep, [Spool(root), root, receiver.least_free_bytes])]
    ours.start_server((receiver.host, receiver.port), block=False, evt_handlers=handlers, ssl_context=tls)
    return ours


def run_receiver(receiver: Receiver, root: Path) -> None:
    """Listen until interrupted; this process is limited in memory from here on."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    server = start_receiver(receiver, root)
    try:
        threading.Event().wait()
    finally:
        server.shutdown()


def _keep(event: evt.Event, spool: Spool, root: Path, least_free_bytes: int) -> int:
    """Return the status of a C-STORE: 0x0000 only when the file and its name are on the disk."""
    if shutil.disk_usage(root).free < least_free_bytes:
        log.warning("an image was refused: the disk is almost full")
        return _OUT_OF_RESOURCES
    try:
        dataset = event.dataset
        modality = str(dataset.get("Modality") or "")
        study, series, instance = (str(dataset[name].value) for name in _UIDS)
        content = event.encoded_dataset()
    except Exception as error:  # noqa: BLE001 - the wall of the DICOM handler: pydicom raises whatever the damage causes
        log.warning("an image was refused: it cannot be read", error=type(error).__name__)
        return _CANNOT_UNDERSTAND
    if modality.upper() in NEVER:
        return _SUCCESS  # a router may send everything that it gets; nothing of this kind is ever segmented
    try:
        spool.keep(study, series, instance, content)
    except OSError as error:
        log.warning("an image was refused: it could not be written", error=type(error).__name__)
        return _OUT_OF_RESOURCES
    return _SUCCESS
