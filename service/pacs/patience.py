"""How often and after which pauses a PACS is asked again: for ever while it is gone, a few times while it misbehaves."""

import random
from collections.abc import Callable
from typing import Final, TypeVar

from service.errors import PacsBadResponse, PacsBusy, PacsError, PacsUnreachable
from service.pacs.breaker import Breaker

ATTEMPTS: Final = 8
"""Answers that are busy or garbage after which it is given up; a PACS that is gone is waited for."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0

TRANSIENT: Final = (PacsUnreachable, PacsBusy, PacsBadResponse)
"""Errors after which the same may succeed."""

_T = TypeVar("_T")


def persist(
    work: Callable[[], _T], breaker: Breaker, sleep: Callable[[float], None], on_failure: Callable[[PacsError], None]
) -> _T:
    """Return what `work` returns, in the end.

    Args:
        work: asks a PACS; may be repeated.
        breaker: of this PACS.
        sleep: waits so many seconds; it raises whatever ends the job.
        on_failure: is told of each attempt that failed.

    Raises:
        PacsError: the last one, if it will never succeed or was answered too often.
    """
    answered, failed = 0, 0
    while True:
        while pause := breaker.seconds_to_wait():
            sleep(pause)
        try:
            result = work()
        except TRANSIENT as error:
            breaker.failed()
            on_failure(error)
            failed += 1
            answered += not isinstance(error, PacsUnreachable)
            if answered >= ATTEMPTS:
                raise
            # Full jitter: jobs that failed together do not come back together.
            longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failed - 1, 20))
            sleep(random.uniform(longest / 2, longest))  # noqa: S311 - no secret
        except PacsError:
            breaker.succeeded()  # it answers
            raise
        else:
            breaker.succeeded()
            return result
