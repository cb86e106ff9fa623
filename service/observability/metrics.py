"""Metrics in Prometheus format.

Labels hold names of routes, models, stages and states, never anything that a user sent.
"""

from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.schemas import Stage, State, StatementStatus

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""Media type of `Metrics.text`."""

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_CONFIDENCES: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1)


class Metrics:
    """The metrics of one service.

    | name | type | labels | meaning |
    |---|---|---|---|
    | `calibrant_requests_total` | counter | method, route, status | requests answered |
    | `calibrant_request_seconds` | histogram | method, route | time until the response starts |
    | `calibrant_jobs_finished_total` | counter | model, state | finished jobs by final state |
    | `calibrant_jobs` | gauge | state | jobs that wait or run at the moment |
    | `calibrant_ready` | gauge | | 1 if a job could be accepted, computed and published now |
    | `calibrant_state_free_bytes` | gauge | | free space on the disk of the state directory |
    | `calibrant_stage_seconds` | histogram | model, stage | time of each stage of a succeeded case |
    | `calibrant_foreground_confidence` | histogram | model | mean confidence over the foreground, one value per case |
    | `calibrant_statements_total` | counter | model, status | verdicts: holds, withdrawn, not compared |
    | `calibrant_statements_withdrawn_total` | counter | model | of them the withdrawn ones; the former name of that |
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        given: Any = {"registry": self._registry}
        self._requests = Counter("calibrant_requests_total", "Requests.", ["method", "route", "status"], **given)
        self._request_seconds = Histogram(
            "calibrant_request_seconds", "Time until the answer began.", ["method", "route"], buckets=_SECONDS, **given
        )
        self._finished = Counter("calibrant_jobs_finished_total", "Jobs that ended.", ["model", "state"], **given)
        self._jobs = Gauge("calibrant_jobs", "Jobs that wait or run.", ["state"], **given)
        self._ready = Gauge("calibrant_ready", "Whether a job could be accepted.", **given)
        self._free = Gauge("calibrant_state_free_bytes", "Free space for the state.", **given)
        self._stages = Histogram(
            "calibrant_stage_seconds", "Time of each stage.", ["model", "stage"], buckets=_SECONDS, **given
        )
        self._confidence = Histogram(
            "calibrant_foreground_confidence", "Mean confidence.", ["model"], buckets=_CONFIDENCES, **given
        )
        self._statements = Counter("calibrant_statements_total", "Statements.", ["model", "status"], **given)
        self._withdrawn = Counter("calibrant_statements_withdrawn_total", "Statements withdrawn.", ["model"], **given)

    def request_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)

    def case_succeeded(
        self,
        model: str,
        seconds: Mapping[Stage, float],
        confidence: float | None,
        statement: StatementStatus | None,
    ) -> None:
        """Count a case that succeeded.

        Args:
            model: name of the model, without its hash.
            seconds: duration of each stage.
            confidence: mean over the foreground; None without foreground.
            statement: status of the statement; None if the job did not keep the summary.
        """
        self._finished.labels(model, "succeeded").inc()
        for stage, spent in seconds.items():
            self._stages.labels(model, stage).observe(spent)
        if confidence is not None:
            self._confidence.labels(model).observe(confidence)
        if statement is not None:
            self._statements.labels(model, statement).inc()
        if statement == "withdrawn":
            self._withdrawn.labels(model).inc()

    def case_ended(self, model: str, state: str) -> None:
        """Count a case that failed or was cancelled."""
        self._finished.labels(model, state).inc()

    def text(self, jobs: Mapping[State, int], *, ready: bool, free_bytes: int) -> bytes:
        """Return all metrics in Prometheus format.

        Args:
            jobs: number of jobs in each state at the moment.
            ready: whether a job could be accepted now.
            free_bytes: free space on the disk of the state directory.
        """
        self._ready.set(ready)
        self._free.set(free_bytes)
        for state, number in jobs.items():
            self._jobs.labels(state).set(number)
        return generate_latest(self._registry)
