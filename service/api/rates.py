"""How often a key may be used, and how often a login may fail, within a minute; the library `limits` counts."""

import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from service.errors import RateLimited
from service.settings import Settings


class Rates:
    """The counts of one application, in memory: a restart forgets them."""

    def __init__(self, settings: Settings) -> None:
        """Prepare.

        Args:
            settings: number of requests of a key, and of failed logins of an address.
        """
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(settings.max_requests_per_minute)
        self._logins = RateLimitItemPerMinute(settings.max_failed_logins_per_minute)

    def count_request(self, key: str) -> None:
        """Count a request with a key.

        Raises:
            RateLimited: there were too many in the last minute.
        """
        if key and not self._limiter.hit(self._requests, "request", key):
            msg = f"This key was used more than {self._requests.amount} times in a minute. Go on after the seconds of Retry-After."
            raise RateLimited(msg, self._seconds(self._requests, "request", key))

    def reject_guessing(self, address: str) -> None:
        """Refuse a login, right or wrong, from an address where too many have failed.

        Raises:
            RateLimited: the last minute saw as many as are allowed.
        """
        if not self._limiter.test(self._logins, "login", address):
            msg = f"{self._logins.amount} logins from your address have failed within a minute. Try again after the seconds of Retry-After."
            raise RateLimited(msg, self._seconds(self._logins, "login", address))

    def count_failure(self, address: str) -> None:
        """Count a failed login."""
        self._limiter.hit(self._logins, "login", address)

    def _seconds(self, item: RateLimitItemPerMinute, *identifiers: str) -> float:
        return max(self._limiter.get_window_stats(item, *identifiers).reset_time - time.time(), 1)
