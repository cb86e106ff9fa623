"""Chooses the series of a request, and checks that the pulled series is complete and not made by this service."""

from collections.abc import Iterator
from dataclasses import dataclass

from service.errors import AmbiguousSeries, PacsBadResponse, SeriesChanged, SeriesNotFound, UnsuitableSeries
from service.pacs.instance import read_instance
from service.pacs.peer import SeriesSource
from service.pacs.selection import Selection, Series, digest_of, reject_unsuitable
from service.schemas import Accept, DicomObject


@dataclass(frozen=True, slots=True)
class PacsRequest:
    """A request to segment a series of a PACS.

    Args:
        owner: whose job it will be.
        pacs: name of the source.
        study: Study Instance UID; None if only the series is known.
        series: Series Instance UID; None if `select` chooses it.
        select: selects a series of the study.
        model: identity of the bundle.
        objects: DICOM objects to make.
        destination: name of the PACS that the objects are sent to.
        accept: `anyway`: also a series that says that the model is not made for it.
    """

    owner: str
    pacs: str
    study: str | None
    series: str | None
    select: Selection
    model: str
    objects: tuple[DicomObject, ...]
    destination: str
    accept: Accept = "stated"


def choose_series(source: SeriesSource, request: PacsRequest) -> Series:
    """Return the series that a request means.

    Raises:
        SeriesNotFound: the source holds no such series, or none that fits.
        AmbiguousSeries: several fit.
        UnsuitableSeries: it holds results, or was made by this service.
        PacsError: the source fails.
    """
    candidates = _candidates(source, request)
    fitting = [series for series in candidates if request.select.fits(series) and _is_suitable(series)]
    if not fitting:
        msg = f"The PACS holds {len(candidates)} series with these UIDs, of which none fits the selection and holds images. Check the UIDs and the selection."
        raise SeriesNotFound(msg)
    if len(fitting) > 1:
        counts = ", ".join(str(series.instances or "?") for series in fitting[:10])
        msg = f"{len(fitting)} series fit the selection, of {counts} images; one is expected. Narrow it, or name the series."
        raise AmbiguousSeries(msg)
    return fitting[0]


def _candidates(source: SeriesSource, request: PacsRequest) -> list[Series]:
    """Return the series with the UIDs of a request; one that it names must be suitable."""
    candidates = source.find_series(study=request.study, series=request.series)
    if request.series is None:
        return candidates
    named = [series for series in candidates if series.uid == request.series and request.study in (None, series.study)]
    for series in named:
        reject_unsuitable(series)
    return named


def _is_suitable(series: Series) -> bool:
    try:
        reject_unsuitable(series)
    except UnsuitableSeries:
        return False
    return True


def reject_ours(files: Iterator[bytes], received: list[str]) -> Iterator[bytes]:
    """Yield files as they arrive, and append their SOP Instance UIDs to `received`.

    Raises:
        UnsuitableSeries: this service made one of them, or contributed to it.
    """
    for content in files:
        instance = read_instance(content)
        if instance.ours:
            msg = "The series was made by this service. Ask for the series that it was made from."
            raise UnsuitableSeries(msg)
        received.append(instance.uid)
        yield content


def reject_other_images(received: list[str], listed: list[str], digest: str) -> None:
    """Check that a pulled series is the one that the job was made for.

    Args:
        received: SOP Instance UIDs of the pulled files.
        listed: SOP Instance UIDs that the source lists now.
        digest: digest of the SOP Instance UIDs when the job was made.

    Raises:
        SeriesChanged: the source lists other images now.
        PacsBadResponse: the source sent other images than it lists; it may be asked again.
    """
    if digest_of(listed) != digest:
        msg = f"The PACS holds {len(listed)} images of the series now, not those of when the job was made. Request the series again: that makes a new job."
        raise SeriesChanged(msg)
    if digest_of(received) != digest:
        msg = f"The PACS sent {len(set(received))} images of a series of {len(listed)}, or images that it does not list. It is tried again."
        raise PacsBadResponse(msg)
