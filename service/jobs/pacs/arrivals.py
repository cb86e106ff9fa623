"""Makes jobs of series that arrive at a PACS, by the rules of the PACS file.

Orthanc's changes, its scripts and the spool of `calibrant receive` only give hints: the series is looked up again, and
the digest of its images decides whether it is new.
"""

import hashlib
import threading
import time
from contextlib import suppress
from typing import Final

import structlog

from service.bundle.registry import Registry
from service.errors import CalibrantError, PacsError, RequestError, SettingsError, UnsuitableSeries
from service.jobs.pacs.queue import PacsJobs
from service.jobs.pacs.series import PacsRequest
from service.pacs.changes import Orthanc, Position
from service.pacs.config import RECEIVED, PacsFile, Rule
from service.pacs.selection import Selection, Series, reject_unsuitable
from service.pacs.spool import Spool
from service.storage.durable import write_durably
from service.storage.local import StateDirectory

log = structlog.get_logger(__name__)

_HINTS: Final = ".hints"
_HINTS_S: Final = 0.2
"""Seconds between two looks at the hints."""

_SPOOL_S: Final = 0.5
"""Seconds between two looks at the spool."""


class Arrivals:
    """Follows every source that a rule names, in a thread for each source."""

    def __init__(self, jobs: PacsJobs, file: PacsFile, registry: Registry, state: StateDirectory) -> None:
        self._jobs = jobs
        self._file = file
        self._registry = registry
        self._state = state
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._seen: dict[tuple[str, str], int] = {}

    def start(self) -> None:
        """Start the threads."""
        for name in dict.fromkeys(rule.pacs for rule in self._file.rule):
            if name == RECEIVED:
                self._begin(self._follow_spool, name)
            elif self._file.pacs[name].orthanc is not None:
                self._begin(self._follow_changes, name)
        if self._file.webhook is not None:
            self._begin(self._follow_hints, self._file.webhook.pacs)

    def stop(self) -> None:
        """End the threads; the positions are on the disk."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def note(self, pacs: str, series: str) -> None:
        """Store a hint on the disk; the series is looked up later.

        The sender of the hint must get its answer first: Orthanc's scripts hold locks that its DICOMweb waits for.
        """
        folder = self._state.changes / f"{pacs}{_HINTS}"
        folder.mkdir(exist_ok=True)
        write_durably(folder / hashlib.sha256(series.encode()).hexdigest()[:32], series.encode())

    def consider(self, pacs: str, series: str, study: str | None = None) -> list[str]:
        """Submit the jobs that the rules make of a series, and return their ids; none if it cannot be segmented.

        Args:
            pacs: name of the source.
            series: Series Instance UID.
            study: Study Instance UID, if it is known.

        Raises:
            PacsError: the source does not answer.
        """
        with self._jobs.source(pacs) as source:
            candidates = [found for found in source.find_series(study=study, series=series) if found.uid == series]
        jobs = []
        for candidate in candidates:
            with suppress(UnsuitableSeries):
                reject_unsuitable(candidate)
                rules = [rule for rule in self._file.rule if rule.pacs == pacs and rule.select.fits(candidate)]
                jobs += [job for rule in rules for job in self._submit(rule, candidate)]
        return jobs

    def _submit(self, rule: Rule, series: Series) -> list[str]:
        """Return the id of the job; errors of the series itself are logged, not raised, because no request waits for it."""
        try:
            request = PacsRequest(
                owner=rule.owner,
                pacs=rule.pacs,
                study=series.study,
                series=series.uid,
                select=Selection(),
                model=self._registry.find(rule.model).identity,
                objects=tuple(rule.objects),
                destination=rule.destination or rule.pacs,
                accept=rule.accept,
            )
            return [self._jobs.submit(request).id]
        except RequestError as error:
            log.warning("an arriving series was not segmented", problem=error.code)
            return []

    def _begin(self, follow: object, name: str) -> None:
        thread = threading.Thread(target=follow, args=(name,), name=f"calibrant-{name}", daemon=True)  # type: ignore[arg-type]  # one of two methods
        self._threads.append(thread)
        thread.start()

    def _follow_changes(self, name: str) -> None:
        pacs = self._file.pacs[name]
        position = Position(self._state.changes / name)
        orthanc = Orthanc(pacs)
        lost = False
        while not self._ended.is_set():
            pause = pacs.poll_s
            try:
                # Series from before Calibrant was connected are not segmented.
                since = position.read()
                if since is None:
                    position.write(orthanc.end())
                else:
                    pause = 0 if self._take(orthanc, name, position, since) else pause
            except (CalibrantError, OSError) as error:
                if not lost:
                    log.warning("changes cannot be followed", error=type(error).__name__)
                lost = True
                pause = max(pause, 1.0)
            else:
                lost = False
            self._ended.wait(pause)
        orthanc.close()

    def _follow_hints(self, name: str) -> None:
        folder = self._state.changes / f"{name}{_HINTS}"
        while not self._ended.wait(_HINTS_S):
            for hint in sorted(folder.iterdir()) if folder.is_dir() else []:
                try:
                    self.consider(name, hint.read_text())
                    hint.unlink()
                except (PacsError, OSError) as error:
                    log.warning("a hint could not be followed", error=type(error).__name__)
                    self._ended.wait(self._file.pacs[name].poll_s)
                except RequestError:  # not a UID
                    hint.unlink()

    def _take(self, orthanc: Orthanc, name: str, position: Position, since: int) -> bool:
        """Make jobs of the next changes, then store the position; return whether more changes follow."""
        changes = orthanc.since(since)
        for series in changes.series:
            self.consider(name, series)
        if changes.last != since:
            position.write(changes.last)
        return not changes.done

    def _follow_spool(self, name: str) -> None:
        receiver = self._file.receiver
        if receiver is None:
            msg = f"rules name {RECEIVED}, but there is no [receiver]"
            raise SettingsError(msg)
        spool = Spool(self._state.received)
        while not self._ended.wait(_SPOOL_S):
            try:
                for arrival in spool.arrivals(time.time()):
                    key = arrival.study, arrival.series
                    if arrival.idle_s < receiver.idle_s or self._seen.get(key) == arrival.count:
                        continue
                    if arrival.idle_s > receiver.patience_s or spool.is_whole(*key):
                        self.consider(name, arrival.series, arrival.study)
                        self._seen[key] = arrival.count
            except (PacsError, RequestError, OSError) as error:
                log.warning("the received series cannot be read", error=type(error).__name__)
