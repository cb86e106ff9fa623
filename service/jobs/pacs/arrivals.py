"""Series that arrive without being asked for -> jobs, by the rules of the PACS file.

What tells of them - Orthanc's changes, its scripts, the spool of `calibrant receive` - is a hint: the series is looked up
again, and the digest of its images decides whether there is anything new.
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
    """Follows every source that a rule names, each in a thread of its own."""

    def __init__(self, jobs: PacsJobs, file: PacsFile, registry: Registry, state: StateDirectory) -> None:
        self._jobs = jobs
        self._file = file
        self._registry = registry
        self._state = state
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._seen: dict[tuple[str, str], int] = {}

    def start(self) -> None:
        """Begin to follow."""
        for name in dict.fromkeys(rule.pacs for rule in self._file.rule):
            if name == RECEIVED:
                self._begin(self._follow_spool, name)
            elif self._file.pacs[name].orthanc is not None:
                self._begin(self._follow_changes, name)
        if self._file.webhook is not None:
            self._begin(self._follow_hints, self._file.webhook.pacs)

    def stop(self) -> None:
        """End; positions are kept."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def note(self, pacs: str, series: str) -> None:
        """Keep a hint on the disk; it is looked up later.

        Whoever gives it must not be asked before it has its answer: Orthanc's scripts hold locks that its DICOMweb
        waits for.
        """
        folder = self._state.changes / f"{pacs}{_HINTS}"
        folder.mkdir(exist_ok=True)
        write_durably(folder / hashlib.sha256(series.encode()).hexdigest()[:32], series.encode())

    def consider(self, pacs: str, series: str, study: str | None = None) -> list[str]:
        """Return the ids of the jobs that the rules make of a series; none if it is nothing to segment.

        Args:
            pacs: name of the source.
            series: Series Instance UID.
            study: Study Instance UID, where it is known.

        Raises:
            PacsError: the source does not answer.
        """
        with self._jobs.source(pacs) as source:
            found = [each for each in source.find_series(study=study, series=series) if each.uid == series]
        jobs = []
        for each in found:
            with suppress(UnsuitableSeries):
                reject_unsuitable(each)
                rules = [rule for rule in self._file.rule if rule.pacs == pacs and rule.select.fits(each)]
                jobs += [job for rule in rules for job in self._submit(rule, each)]
        return jobs

    def _submit(self, rule: Rule, series: Series) -> list[str]:
        """Return the id of the job; what is at fault with the series itself is logged, not raised: nobody waits for it."""
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
            )
            return [self._jobs.submit(request).id]
        except RequestError as error:
            log.warning("a series that arrived was left", problem=error.code)
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
                # What was there before Calibrant was connected is not segmented.
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
                except RequestError:  # no UID: nothing can be made of it
                    hint.unlink()

    def _take(self, orthanc: Orthanc, name: str, position: Position, since: int) -> bool:
        """Make jobs of the next changes, then remember the place; say whether more follow."""
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
                for each in spool.arrivals(time.time()):
                    key = each.study, each.series
                    if each.idle_s < receiver.idle_s or self._seen.get(key) == each.count:
                        continue
                    if each.idle_s > receiver.patience_s or spool.is_whole(*key):
                        self.consider(name, each.series, each.study)
                        self._seen[key] = each.count
            except (PacsError, RequestError, OSError) as error:
                log.warning("what was received cannot be taken", error=type(error).__name__)
