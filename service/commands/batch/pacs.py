"""Cases of a batch from a PACS (`pacs:NAME?modality=MR&study=...`): series that are pulled into the state directory.

The series name patients, so they are never stored among the results. A series is pulled once, so that a batch that is
run again goes on.
"""

import hashlib
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import parse_qs

from pydantic import ValidationError

from service.commands.batch.case import BatchCase, FoundCases, Skipped
from service.errors import SourceError, UnsuitableSeries
from service.pacs.config import read_pacs_file
from service.pacs.instance import read_instance
from service.pacs.peer import Peer, open_peer
from service.pacs.selection import Selection, Series, digest_of, reject_unsuitable
from service.settings import Settings
from service.storage.durable import write_durably

SCHEME: Final = "pacs:"

_PULLED: Final = "pulled"
_COMPLETE: Final = "complete"


def find_pacs_cases(source: Path) -> FoundCases:
    """Pull the series that fit, and return a case for each; its id is the Series Instance UID.

    Args:
        source: ``pacs:NAME`` with an optional query of ``study`` and ``series`` (may be repeated), ``modality``,
            ``description``, ``body_part``, ``min_instances`` and ``max_instances``.

    Raises:
        SourceError: the query cannot be used.
        PacsNotFound: the PACS file names no such PACS.
        PacsError: the PACS fails.
    """
    name, _, query = str(source).removeprefix(SCHEME).partition("?")
    fields = parse_qs(query, keep_blank_values=True)
    places = [{"study": uid} for uid in fields.pop("study", [])] + [{"series": uid} for uid in fields.pop("series", [])]
    try:
        selection = Selection.model_validate({key: values[0] for key, values in fields.items()})
    except ValidationError as error:
        known = ", ".join(Selection.model_fields)
        msg = f"The query of pacs: cannot be used. It may name study, series, {known}, each with a value of its kind."
        raise SourceError(msg) from error
    settings = Settings.read()
    root = settings.state_dir / _PULLED / name
    outcome = FoundCases()
    with open_peer(read_pacs_file(settings.pacs_file).find(name)) as peer:
        by_uid = {series.uid: series for place in places or [{}] for series in peer.find_series(**place)}
        for uid, series in by_uid.items():
            if reason := _why_not(series, selection):
                outcome.skipped.append(Skipped(Path(f"{SCHEME}{name}") / uid, reason))
            else:
                files = _pulled(peer, series, root)
                outcome.cases.append(BatchCase(uid, files, PurePosixPath(uid), uid, is_series=True))
    return outcome


def _why_not(series: Series, selection: Selection) -> str:
    with suppress(UnsuitableSeries):
        reject_unsuitable(series)
        return "" if selection.fits(series) else "it does not fit the query"
    return "results or documents, or made by Calibrant"


def _pulled(peer: Peer, series: Series, root: Path) -> tuple[Path, ...]:
    """Return the files of a series, pulled unless its images are unchanged since the last time."""
    folder = root / hashlib.sha256(series.uid.encode()).hexdigest()[:32]
    digest = digest_of(peer.find_instances(series.study, series.uid))
    complete = folder / _COMPLETE
    if not complete.is_file() or complete.read_text() != digest:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        complete.unlink(missing_ok=True)
        received = []
        for content in peer.fetch_series(series.study, series.uid):
            uid = read_instance(content).uid
            received.append(uid)
            (folder / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.dcm").write_bytes(content)
        if digest_of(received) != digest:
            msg = f"The PACS sent {len(received)} images of a series, but lists other ones. Run the batch again."
            raise SourceError(msg)
        write_durably(complete, digest.encode())
    return tuple(sorted(folder.glob("*.dcm")))
