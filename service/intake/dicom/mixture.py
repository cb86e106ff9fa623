"""The names of several series, so that the caller can choose one: UID, modality, number and count of images.

Descriptions may name a patient and are left out; every value is checked to be what its attribute says.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from service.errors import MultipleSeries

LISTED: Final = 20
"""Maximum number of series that are named."""

_MODALITIES: Final = ("CT", "MR", "PT", "OT", "NM", "XA", "CR", "DX", "US")


class SeriesInArchive(NamedTuple):
    """One of several series.

    Args:
        uid: Series Instance UID.
        modality: Modality.
        number: Series Number as written.
        images: files or frames of it.
    """

    uid: str
    modality: str
    number: str
    images: int


def several_series(found: Iterable[SeriesInArchive]) -> MultipleSeries:
    """Return the error that names each of several series.

    Args:
        found: the series, in any order.
    """
    series = sorted(found, key=lambda one: -one.images)
    msg = f"{len(series)} series were found; one is expected: {named(series)}. Choose one by its UID (`series=UID`, `--series UID`), or send the files of one series only."
    return MultipleSeries(msg)


def named(series: list[SeriesInArchive]) -> str:
    """Return the names of series for a message.

    >>> named([SeriesInArchive("1.2.3", "MR", "4", 176)])
    '1.2.3 (MR, series 4, 176 images)'
    """
    more = f" and {len(series) - LISTED} more" if len(series) > LISTED else ""
    return "; ".join(_named(one) for one in series[:LISTED]) + more


def _named(one: SeriesInArchive) -> str:
    uid = one.uid if re.fullmatch(r"[0-9.]{1,64}", one.uid) else "a UID that is not valid"
    parts = [one.modality] if one.modality in _MODALITIES else []
    parts += [f"series {one.number}"] if re.fullmatch(r"-?\d{1,12}", one.number, re.ASCII) else []
    parts.append(f"{one.images} image{'' if one.images == 1 else 's'}")
    return f"{uid} ({', '.join(parts)})"
