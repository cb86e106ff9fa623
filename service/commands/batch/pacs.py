"""`pacs:NAME?modality=MR&study=...` -> the cases of a batch: series of a PACS, pulled into the state directory.

They name patients, so they never lie among the results. What was pulled is not pulled again: a batch that is run once
more goes on.
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
    """Return a case for each series that fits; its id is the SeriesInstanceUID. They are pulled first.

    Args:
        source: ``pacs:NAME``, and as a query ``study`` and ``series`` (also several times), ``modality``,
            ``description``, ``body_part``, ``min_instances`` and ``max_instances``.

    Raises:
        SourceError: the query cannot be used.
        PacsNotFound: the PACS file names no such PACS.
        PacsError: the PACS does not do its part.
    """
    name, _, query = str(source).removeprefix(SCHEME).partition("?")
    wanted = parse_qs(query, keep_blank_values=True)
    places = [{"study": uid} for uid in wanted.pop("study", [])] + [{"series": uid} for uid in wanted.pop("series", [])]
    try:
        selection = Selection.model_validate({key: values[0] for key, values in wanted.items()})
    except ValidationError as error:
        known = ", ".join(Selection.model_fields)
        msg = f"The query of pacs: cannot be used. It may name study, series, {known}, each with a value of its kind."
        raise SourceError(msg) from error
    settings = Settings.read()
    root = settings.state_dir / _PULLED / name
    found = FoundCases()
    with open_peer(read_pacs_file(settings.pacs_file).find(name)) as peer:
        series = {each.uid: each for place in places or [{}] for each in peer.find_series(**place)}
        for each in series.values():
            if reason := _why_not(each, selection):
                found.skipped.append(Skipped(Path(f"{SCHEME}{name}") / each.uid, reason))
            else:
                files = _pulled(peer, each, root)
                found.cases.append(BatchCase(each.uid, files, PurePosixPath(each.uid), each.uid, is_series=True))
    return found


def _why_not(series: Series, selection: Selection) -> str:
    with suppress(UnsuitableSeries):
        reject_unsuitable(series)
        return "" if selection.fits(series) else "it does not fit the query"
    return "results or documents, or made by Calibrant"


def _pulled(peer: Peer, series: Series, root: Path) -> tuple[Path, ...]:
    """Return the files of a series, in the order of their SOP Instance UIDs; images that came late are pulled, too."""
    folder = root / hashlib.sha256(series.uid.encode()).hexdigest()[:32]
    digest = digest_of(peer.find_instances(series.study, series.uid))
    complete = folder / _COMPLETE
    if not complete.is_file() or complete.read_text() != digest:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        complete.unlink(missing_ok=True)
        seen = []
        for content in peer.fetch_series(series.study, series.uid):
            uid = read_instance(content).uid
            seen.append(uid)
            (folder / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.dcm").write_bytes(content)
        if digest_of(seen) != digest:
            msg = f"The PACS sent {len(seen)} images of a series, but tells of other ones. Run the batch again."
            raise SourceError(msg)
        write_durably(complete, digest.encode())
    return tuple(sorted(folder.glob("*.dcm")))
