"""Which of several formats a caller wants: `?format=` before the header `Accept` (RFC 9110, section 12.5.1)."""

from collections.abc import Mapping
from typing import Final, TypeVar

from fastapi import Request

from service.errors import NotAcceptable

_Format = TypeVar("_Format", bound=str)

_ANYTHING: Final = "*/*"


def choose(request: Request, wanted: _Format | None, offers: Mapping[str, _Format], note: str = "") -> _Format:
    """Return the format to answer in; of two that are accepted alike the first offered.

    Args:
        request: with or without an Accept.
        wanted: what `?format=` says, if anything.
        offers: format by media type, the default first; a format may stand below several.
        note: why a media type that one might expect is not offered.

    Raises:
        NotAcceptable: none of the media types is accepted.
    """
    if wanted is not None:
        return wanted
    ranges = _ranges(",".join(request.headers.getlist("accept")) or _ANYTHING)
    quality = {media_type: _quality(media_type, ranges) for media_type in offers}
    best = max(offers, key=lambda media_type: quality[media_type])
    if not quality[best]:
        formats = ", ".join(dict.fromkeys(offers.values()))
        msg = f"None of the media types of Accept is offered. Accept one of {', '.join(offers)}, or add ?format= with one of {formats}.{f' {note}' if note else ''}"
        raise NotAcceptable(msg)
    return offers[best]


def _ranges(accept: str) -> dict[str, float]:
    ranges = {}
    for each in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in each.split(";"))
        weight = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        try:
            ranges[media_range] = float(weight)
        except ValueError:  # what is no number is no wish
            ranges[media_range] = 0.0
    return ranges


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    family = f"{media_type.partition('/')[0]}/*"
    found = (ranges[name] for name in (media_type, family, _ANYTHING) if name in ranges)
    return next(found, 0.0)
