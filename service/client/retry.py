"""Decides which failed requests are repeated, and when; tenacity repeats them.

Every request may be repeated: a POST has an Idempotency-Key or is identified by its content. An unreachable server is only
waited for if it has answered before, because then it may be restarting.
"""

from typing import Any, Final

from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    stop_before_delay,
    wait_random,
    wait_random_exponential,
)

from ..errors import (
    BundleError,
    CalibrantError,
    ServerProblem,
    ServerUnreachable,
    ServiceBusy,
    TooManyJobs,
    TooManyUploads,
    from_code,
)

PATIENCE_S: Final = 60.0
"""Seconds over which a request is repeated before its error is raised."""

QUEUING_S: Final = 3600.0
"""Seconds over which a request is repeated while the server has no room for it: that is waiting in a queue."""

QUEUING: Final = (TooManyJobs, TooManyUploads, ServiceBusy)
"""What a server without room answers, together with the seconds after which there may be some."""

PASSING: Final = (429, 502, 503, 504)
"""HTTP statuses of a server, or of a proxy in front of it, that are likely to pass."""

_backoff = wait_random_exponential(multiplier=0.25, max=8)


class Retry:
    """The retry policy of one client; `met` says whether the server has ever answered."""

    def __init__(self, patience_s: float) -> None:
        """Prepare.

        Args:
            patience_s: seconds over which a request is repeated.
        """
        self.met = False
        self._patience_s = patience_s

    @property
    def policy(self) -> dict[str, Any]:
        """Arguments of tenacity's `Retrying` and `AsyncRetrying`."""
        return {
            "retry": retry_if_exception(self._is_passing),
            "wait": _pause_s,
            "stop": self._is_over,
            "reraise": True,
        }

    def _is_over(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        queues = isinstance(error, ServerProblem) and isinstance(_named(error), QUEUING)
        seconds = max(self._patience_s, QUEUING_S) if queues and self._patience_s else self._patience_s
        # The first stops before a pause that would exceed the patience, the second once the patience is used up.
        return (stop_before_delay(seconds) | stop_after_delay(seconds))(state)

    def _is_passing(self, error: BaseException) -> bool:
        if isinstance(error, ServerUnreachable):
            return self.met
        return isinstance(error, ServerProblem) and error.status in PASSING and not _is_broken_bundle(error)


def _is_broken_bundle(error: ServerProblem) -> bool:
    return isinstance(_named(error), BundleError)


def _named(error: ServerProblem) -> CalibrantError:
    return from_code(error.problem_type, error.detail)


def _pause_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    retry_after_s = error.retry_after_s if isinstance(error, ServerProblem) else None
    if retry_after_s is None:
        return _backoff(state)
    # Those that were refused together should not all come back together.
    return retry_after_s + wait_random(0, retry_after_s / 4)(state)
