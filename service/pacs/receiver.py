"""A C-STORE SCP (PS3.4 annex B) in a process of its own: images are on disk before the sender gets a success status.

It knows neither models nor jobs: it only fills the spool, which the service watches. Only listed AE titles may send.
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
from service.pacs.listener import listen
from service.pacs.selection import NEVER
from service.pacs.spool import Spool

log = structlog.get_logger(__name__)

MEMORY_BYTES: Final = 8 << 30
"""Limit of the process's address space: guards against lengths that a sender makes up."""

NETWORK_TIMEOUT_S: Final = 60.0
"""Seconds of silence after which an association is ended."""

_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000


def start_receiver(receiver: Receiver, root: Path) -> AE:
    """Start to listen in threads of this process and return the AE, whose `shutdown` ends it.

    Each sender may have `most_associations` at once (`service.pacs.listener`).

    Args:
        receiver: its configuration.
        root: folder of the spool.

    Raises:
        SettingsError: a certificate cannot be used.
        OSError: the port is taken.
    """
    root.mkdir(parents=True, exist_ok=True)
    ours = AE(ae_title=receiver.aet)
    ours.require_called_aet = True
    ours.require_calling_aet = list(receiver.allowed)
    ours.network_timeout = ours.dimse_timeout = NETWORK_TIMEOUT_S
    ours.add_supported_context(VERIFICATION)
    for context in AllStoragePresentationContexts:
        ours.add_supported_context(str(context.abstract_syntax), list(TRANSFER_SYNTAXES))
    tls: Any = receiver.tls.context() if receiver.tls else None
    handlers = [(evt.EVT_C_STORE, _keep, [Spool(root), root, receiver.least_free_bytes])]
    listen(ours, (receiver.host, receiver.port), handlers, most=receiver.most_associations, tls=tls)
    return ours


def run_receiver(receiver: Receiver, root: Path) -> None:
    """Limit the memory of this process and listen until interrupted."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    server = start_receiver(receiver, root)
    try:
        threading.Event().wait()
    finally:
        server.shutdown()


def _keep(event: evt.Event, spool: Spool, root: Path, least_free_bytes: int) -> int:
    """Handle a C-STORE and return its status: 0x0000 only after the file and its folder entry are on disk."""
    if shutil.disk_usage(root).free < least_free_bytes:
        log.warning("an image was refused: the disk is almost full")
        return _OUT_OF_RESOURCES
    try:
        dataset = event.dataset
        modality = str(dataset.get("Modality") or "")
        study, series, instance = (str(dataset[name].value) for name in _UIDS)
        content = event.encoded_dataset()
    except Exception as error:  # noqa: BLE001 - pydicom may raise anything over a damaged file
        log.warning("an image was refused: it cannot be read", error=type(error).__name__)
        return _CANNOT_UNDERSTAND
    if modality.upper() in NEVER:
        return _SUCCESS  # accepted and dropped: routers may forward everything, but these are never segmented
    try:
        spool.keep(study, series, instance, content)
    except OSError as error:
        log.warning("an image was refused: it could not be written", error=type(error).__name__)
        return _OUT_OF_RESOURCES
    return _SUCCESS
