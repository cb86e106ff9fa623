"""Content negotiation: `?format=` takes precedence over the header `Accept` (RFC 9110, section 12.5.1)."""

from collections.abc import Mapping
from typing import Final, TypeVar

from fastapi import Request

from service.errors import NotAcceptable

_Format = TypeVar("_Format", bound=str)

_ANYTHING: Final = "*/*"


def choose(request: Request, parameter: _Format | None, offers: Mapping[str, _Format], note: str = "") -> _Format:
    """Return the format to answer in; of two equally acceptable ones the first offered.

    Args:
        request: with or without an `Accept` header.
        parameter: value of `?format=`, if given.
        offers: format by media type, the default first; a format may have several media types.
        note: why a media type that one might expect is not offered.

    Raises:
        NotAcceptable: none of the media types is accepted.
    """
    if parameter is not None:
        return parameter
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
    for entry in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        try:
            ranges[media_range] = float(weight)
        except ValueError:  # an unreadable weight counts as 0
            ranges[media_range] = 0.0
    return ranges


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    family = f"{media_type.partition('/')[0]}/*"
    matching = (ranges[name] for name in (media_type, family, _ANYTHING) if name in ranges)
    return next(matching, 0.0)
