"""Retries of PACS requests: without limit while it cannot be reached, a few times while it answers with errors."""

import random
from collections.abc import Callable
from typing import Final, TypeVar

from service.errors import PacsBadResponse, PacsBusy, PacsError, PacsUnreachable
from service.pacs.breaker import Breaker

ATTEMPTS: Final = 8
"""Number of busy or malformed answers after which a request is given up."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0

TRANSIENT: Final = (PacsUnreachable, PacsBusy, PacsBadResponse)
"""Errors after which a retry may succeed."""

_T = TypeVar("_T")


def persist(
    work: Callable[[], _T], breaker: Breaker, sleep: Callable[[float], None], on_failure: Callable[[PacsError], None]
) -> _T:
    """Call `work` until it succeeds and return its result.

    Args:
        work: sends a request to a PACS; it may be repeated.
        breaker: of this PACS.
        sleep: waits for a number of seconds; whatever it raises ends the retries.
        on_failure: called with the error of each failed attempt.

    Raises:
        PacsError: the last error, if a retry cannot succeed or there were `ATTEMPTS` busy or malformed answers.
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
            # Random pauses, so that jobs that failed together do not retry together.
            longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failed - 1, 20))
            sleep(random.uniform(longest / 2, longest))  # noqa: S311 - not for cryptography
        except PacsError:
            breaker.succeeded()  # a refusal is an answer: the PACS works
            raise
        else:
            breaker.succeeded()
            return result
