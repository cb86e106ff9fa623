"""Runs the cases of a batch into files and log lines, whatever happens to single cases or to the whole."""

import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from service.client.retry import PASSING
from service.commands.batch.case import BatchCase, sha256_of
from service.commands.batch.journal import Journal, Line, Shard, key_of
from service.commands.batch.progress import Display
from service.commands.batch.reference import dsc_of
from service.commands.batch.results import Segmented, write_results
from service.commands.batch.segmenter import OUTPUTS, Segmenter
from service.commands.batch.signals import INTERRUPTS, block_interrupts
from service.errors import (
    BundleError,
    CalibrantError,
    ClientError,
    DecoderCrashed,
    DeviceUnavailable,
    Forbidden,
    ModelNotFound,
    ServerProblem,
    ServerUnreachable,
    SettingsError,
    SourceError,
    Unauthorized,
)
from service.executors.embedded import ExecutorStopped
from service.schemas import Accept, problem_of

OPTIONS: Final[dict[str, object]] = {"outputs": list(OUTPUTS)}
"""Everything besides scan and model that changes the files of a case; and `accept`, unless it is the default."""

EXIT_SOME_FAILED, EXIT_ALL_FAILED, EXIT_INTERRUPTED = 4, 5, 130

_LISTENS_S: Final = 0.5
"""Seconds between two looks for a signal: a library's thread may get it, but only the main thread runs its handler."""

# Errors that every case would meet: the batch ends, and goes on when it is run again.
_ENDS_ALL: Final = (ServerUnreachable, DeviceUnavailable, BundleError, ModelNotFound, SettingsError)
_PROBLEMS_THAT_END_ALL: Final = {f"/problems/{error.code}" for error in (Unauthorized, Forbidden, ModelNotFound)}


@dataclass(slots=True)
class Tally:
    """How the cases of a run ended.

    Args:
        lines: log lines by id, without the cases that were not finished.
        before: ids of the cases that an earlier run finished.
        interrupted: whether the run was interrupted.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    interrupted: bool = False

    @property
    def failed(self) -> list[Line]:
        """Lines of the failed cases, sorted by id."""
        return [line for _, line in sorted(self.lines.items()) if line.problem is not None]

    @property
    def exit_code(self) -> int:
        """0 if all succeeded, 4 if some failed, 5 if all did, 130 if it was interrupted."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if not self.failed:
            return 0
        return EXIT_ALL_FAILED if len(self.failed) == len(self.lines) else EXIT_SOME_FAILED


@dataclass(slots=True)
class Batch:
    """One run over the cases of a shard.

    Args:
        out: folder of the results.
        segmenter: computes the cases.
        journal: records finished cases.
        display: shows the progress.
        jobs: cases in flight.
        retry_failed: also repeat cases that failed because of their scan.
        accept: which scans are segmented.
    """

    out: Path
    segmenter: Segmenter
    journal: Journal
    display: Display
    jobs: int = 1
    retry_failed: bool = False
    accept: Accept = "stated"
    _tally: Tally = field(default_factory=Tally)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, cases: list[BatchCase]) -> Tally:
        """Segment the cases that are not done yet, and return how all of them ended.

        Raises:
            CalibrantError: an error that ends the batch, e.g. an unreachable server; finished cases are recorded.
        """
        with self._interruptible(), ThreadPoolExecutor(self.jobs, initializer=block_interrupts) as pool:
            futures = [pool.submit(self._do, case) for case in cases]
            try:
                done, pending = wait(futures, timeout=_LISTENS_S, return_when=FIRST_EXCEPTION)
                while pending and not any(future.exception() for future in done):
                    done, pending = wait(futures, timeout=_LISTENS_S, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
            for future in done:
                future.result()
        return self._tally

    @property
    def _options(self) -> dict[str, object]:
        return OPTIONS if self.accept == "stated" else OPTIONS | {"accept": self.accept}

    def _do(self, case: BatchCase) -> None:
        if self._stop.is_set():
            return
        line = None
        started = time.monotonic()
        try:
            with case.opened() as scan:
                digest = sha256_of(scan)
                key = key_of(digest, self.segmenter.identity, self._options)
                line = self.journal.finished(case.id, key, retry_failed=self.retry_failed)
                if line is not None:
                    self._tally.before.add(case.id)
                else:
                    self.display.begin(case.id)
                    line = self._segment(case, scan, digest, key, started)
        except OSError as error:
            if line is None and error.filename in map(str, case.files):
                line = self._unreadable(case, error, started)
            else:
                self._stop.set()
                msg = f"The results cannot be written ({error.strerror}). Free some space, or take another folder."
                raise SettingsError(msg) from error
        except BaseException:
            self._stop.set()
            raise
        finally:
            if line is not None:
                self._tally.lines[case.id] = line
            self.display.end(case.id, line, before=case.id in self._tally.before)

    def _segment(self, case: BatchCase, scan: Path, digest: str, key: str, started: float) -> Line | None:
        attempt = 1 + len(self.journal.lines_of(case.id, key))
        fields: dict[str, Any] = {"case": case.id, "key": key, "input_sha256": digest, "attempt": attempt}
        try:
            segmented = self.segmenter.segment(
                scan, f"{key}:{attempt}", lambda activity: self.display.show(case.id, activity)
            )
        except CalibrantError as error:
            if self._ends_all(error):
                raise
            if self._stop.is_set() and isinstance(error, DecoderCrashed):
                return None
            fields |= {"state": "failed", "problem": problem_of(error)}
        except ExecutorStopped:
            return None
        else:
            files, sidecar = write_results(self.out, case, digest, segmented)
            fields |= {"statement": segmented.summary.statement.status}
            fields |= {"state": "succeeded", "files": files, "sidecar": sidecar, **_compared(case, segmented)}
        return self._record(fields, started)

    def _unreadable(self, case: BatchCase, error: OSError, started: float) -> Line:
        problem = problem_of(SourceError(f"The file cannot be read ({error.strerror}). Check that it is there."))
        fields = {"case": case.id, "key": "", "input_sha256": "", "attempt": 1, "state": "failed", "problem": problem}
        return self._record(fields, started)

    def _record(self, fields: dict[str, Any], started: float) -> Line:
        seconds = round(time.monotonic() - started, 3)
        line = Line(model=self.segmenter.identity, finished=dt.datetime.now(dt.UTC), seconds=seconds, **fields)
        self.journal.append(line)
        return line

    @staticmethod
    def _ends_all(error: CalibrantError) -> bool:
        if isinstance(error, ServerProblem):
            return error.status in PASSING or error.problem_type in _PROBLEMS_THAT_END_ALL
        return isinstance(error, (*_ENDS_ALL, ClientError))

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C or SIGTERM end the batch after the cases in flight, and a second one end it at once."""
        before = {number: signal.signal(number, self._interrupt) for number in INTERRUPTS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, *_: object) -> None:
        if self._tally.interrupted:
            os._exit(EXIT_INTERRUPTED)  # safe: files are whole and lines are on the disk at any time
        self._tally.interrupted = True
        self._stop.set()
        self.display.say("Interrupted: the cases in flight are finished first. Interrupt again to end at once.")


def shard_of(cases: list[BatchCase], shard: Shard) -> list[BatchCase]:
    """Return every n-th case of a shard, sorted by id."""
    return sorted(cases, key=lambda case: case.id)[shard.index - 1 :: shard.count]


def _compared(case: BatchCase, segmented: Segmented) -> dict[str, Any]:
    if case.reference is None:
        return {}
    try:
        return {"dsc": dsc_of(segmented.mask, case.reference, segmented.summary)}
    except SourceError as error:
        return {"note": error.detail}
