"""Deliver the objects of a result to a PACS, each exactly once.

UIDs are derived from the content, so a repetition sends the same object. The PACS is queried before an object is sent
and again afterwards. Where necessary the stored object is fetched and compared with the one sent, because a PACS may
report success and keep an older object with the same UID.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from service.errors import CalibrantError, ObjectNotKept, PacsBadResponse, PacsError, PacsRefused
from service.pacs.breaker import Breaker
from service.pacs.instance import content_digest
from service.pacs.ledger import OBJECTS, Entry, Ledger
from service.pacs.patience import persist
from service.pacs.peer import Peer
from service.schemas import Problem

log = structlog.get_logger(__name__)


def deliver(folder: Path, peer: Peer, breaker: Breaker, sleep: Callable[[float], None]) -> Ledger:
    """Send all pending objects and return the ledger, in which each object is then stored or given up.

    Args:
        folder: of the job, with a ledger and the objects.
        peer: the PACS.
        breaker: of the PACS.
        sleep: waits for a number of seconds; whatever it raises ends the delivery.

    Raises:
        FileNotFoundError: there is no ledger.
    """
    ledger = Ledger.read(folder)
    if ledger is None:
        msg = f"{folder} has no ledger"
        raise FileNotFoundError(msg)
    first = ledger.entries[0].uid if ledger.entries else ""
    for entry in ledger.pending:

        def failed(error: PacsError, entry: Entry = entry, ledger: Ledger = ledger) -> None:
            entry.problem = _problem(error)
            ledger.save(folder)

        def send(entry: Entry = entry) -> None:
            entry.attempts += 1
            _send(peer, entry, folder / OBJECTS / entry.file, read_back=entry.uid == first)

        try:
            persist(send, breaker, sleep, failed)
        except PacsError as error:
            entry.state, entry.problem = "dead", _problem(error)
            log.warning("an object was given up", job=folder.name, problem=error.code)
        else:
            entry.state, entry.problem = "stored", None
        ledger.save(folder)
    return ledger


def _send(peer: Peer, entry: Entry, path: Path, *, read_back: bool) -> None:
    place = entry.study, entry.series, entry.uid
    held = peer.holds(*place)
    if held and _stored_digest(peer, entry) == entry.content:
        return  # an earlier attempt succeeded without a response
    peer.store(path)
    if not peer.holds(*place):
        msg = "The PACS answered that it has stored an object, but does not find it. It is tried again."
        raise PacsBadResponse(msg)
    if (held or read_back) and _stored_digest(peer, entry) != entry.content:
        msg = (
            "The PACS answered that it has stored an object, but holds another one with the same identifier. It keeps the "
            "first that it got: delete that one there, then retry."
            if held
            else "The PACS answered that it has stored an object, but returns a different one. Check what changes objects there."
        )
        raise ObjectNotKept(msg)


def _stored_digest(peer: Peer, entry: Entry) -> str | None:
    with suppress(PacsRefused):  # listed by a query, but it cannot be fetched
        return content_digest(peer.fetch_instance(entry.study, entry.series, entry.uid))
    return None


def _problem(error: CalibrantError) -> Problem:
    return Problem(type=f"/problems/{error.code}", title=error.title, status=error.status, detail=error.detail)
