"""The header `Prefer` (RFC 7240): how long a client is willing to wait for the answer."""

import re
from collections.abc import Iterable
from typing import Final

from service.errors import InvalidRequest

_WAIT: Final = re.compile(r"""\s*wait\s*=\s*(?:"(\d{1,6})"|(\d{1,6}))\s*(?:;.*)?""", re.IGNORECASE | re.DOTALL)

_BEGINS_WITH_WAIT: Final = re.compile(r"\s*wait\s*=", re.IGNORECASE)

_PREFERENCES: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+')
"""The parts of a list; a comma within quotes separates nothing."""


def seconds_to_wait(headers: Iterable[str], longest_s: float) -> float:
    """Return N of ``Prefer: wait=N`` (section 4.3), capped; other preferences are ignored, as the RFC requires.

    Names are written in any case, the value with or without quotes, several preferences in one header or in several. Of
    two waits the first counts.

    Args:
        headers: values of the header.
        longest_s: cap, in seconds.

    Raises:
        InvalidRequest: the value is no whole number of seconds.
    """
    for preference in (part for header in headers for part in _PREFERENCES.findall(header)):
        if _BEGINS_WITH_WAIT.match(preference):
            match = _WAIT.fullmatch(preference)
            if match is None:
                msg = "Prefer: wait= must be followed by whole seconds, e.g. Prefer: wait=30."
                raise InvalidRequest(msg)
            return min(float(match[1] or match[2]), longest_s)
    return 0.0
