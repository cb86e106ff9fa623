"""Decides which failed requests are repeated, and when; tenacity repeats them.

Every request may be repeated: a POST has an Idempotency-Key or is identified by its content. An unreachable server is only
waited for if it has answered before, because then it may be restarting.
"""

from typing import Any, Final

from tenacity import RetryCallState, retry_if_exception, stop_after_delay, stop_before_delay, wait_random_exponential

from ..errors import BundleError, ServerProblem, ServerUnreachable, from_code

PATIENCE_S: Final = 60.0
"""Seconds over which a request is repeated before its error is raised."""

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
            # The first stops before a pause that would exceed the patience, the second once the patience is used up.
            "stop": stop_before_delay(self._patience_s) | stop_after_delay(self._patience_s),
            "reraise": True,
        }

    def _is_passing(self, error: BaseException) -> bool:
        if isinstance(error, ServerUnreachable):
            return self.met
        return isinstance(error, ServerProblem) and error.status in PASSING and not _is_broken_bundle(error)


def _is_broken_bundle(error: ServerProblem) -> bool:
    return isinstance(from_code(error.problem_type, error.detail), BundleError)


def _pause_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    retry_after_s = error.retry_after_s if isinstance(error, ServerProblem) else None
    return _backoff(state) if retry_after_s is None else retry_after_s
