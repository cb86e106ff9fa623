"""Which series is meant, and whether what was pulled is that series, whole, and none of our own making."""

from collections.abc import Iterator
from dataclasses import dataclass

from service.errors import AmbiguousSeries, PacsBadResponse, SeriesChanged, SeriesNotFound, UnsuitableSeries
from service.pacs.instance import read_instance
from service.pacs.peer import SeriesSource
from service.pacs.selection import Selection, Series, digest_of, reject_unsuitable
from service.schemas import DicomObject


@dataclass(frozen=True, slots=True)
class PacsRequest:
    """What is asked for; the series is found at the PACS.

    Args:
        owner: whose job it will be.
        pacs: name of the source.
        study: Study Instance UID; None where the series alone is known.
        series: Series Instance UID; None where it is selected.
        select: which series of the study.
        model: identity of the bundle.
        objects: what is made.
        destination: name of the PACS that they are sent to.
    """

    owner: str
    pacs: str
    study: str | None
    series: str | None
    select: Selection
    model: str
    objects: tuple[DicomObject, ...]
    destination: str


def choose_series(source: SeriesSource, request: PacsRequest) -> Series:
    """Return the one series that is asked for.

    Raises:
        SeriesNotFound: the source holds no such series, or none that fits.
        AmbiguousSeries: several fit.
        UnsuitableSeries: it holds results, or was made by this service.
        PacsError: the source does not do its part.
    """
    found = source.find_series(study=request.study, series=request.series)
    if request.series is not None:
        found = [each for each in found if each.uid == request.series and request.study in (None, each.study)]
        for series in found:
            reject_unsuitable(series)
    fitting = [each for each in found if request.select.fits(each) and _is_suitable(each)]
    if not fitting:
        msg = f"The PACS holds {len(found)} series of what was asked for, of which none fits and holds images. Look at the UIDs and the selection."
        raise SeriesNotFound(msg)
    if len(fitting) > 1:
        counts = ", ".join(str(each.instances or "?") for each in fitting[:10])
        msg = f"{len(fitting)} series fit the selection, of {counts} images; one is expected. Narrow it, or name the series."
        raise AmbiguousSeries(msg)
    return fitting[0]


def _is_suitable(series: Series) -> bool:
    try:
        reject_unsuitable(series)
    except UnsuitableSeries:
        return False
    return True


def reject_ours(files: Iterator[bytes], seen: list[str]) -> Iterator[bytes]:
    """Yield files as they come, and note their SOP Instance UIDs in `seen`.

    Raises:
        UnsuitableSeries: this service made one, or had a part in it.
    """
    for content in files:
        instance = read_instance(content)
        if instance.ours:
            msg = "The series was made by this service. Ask for the series that it was made from."
            raise UnsuitableSeries(msg)
        seen.append(instance.uid)
        yield content


def reject_other_images(seen: list[str], told: list[str], digest: str) -> None:
    """Raise unless a series that was pulled is the one that the job was made for.

    Args:
        seen: SOP Instance UIDs of the files that came.
        told: those that the source tells of.
        digest: of those that the job was made for.

    Raises:
        SeriesChanged: the source has others now.
        PacsBadResponse: others came than the source tells of; it may be asked again.
    """
    if digest_of(told) != digest:
        msg = f"The PACS holds {len(told)} images of the series now, other ones than when the job was made. Ask for it again: that is another job."
        raise SeriesChanged(msg)
    if digest_of(seen) != digest:
        msg = f"The PACS sent {len(set(seen))} images of a series of {len(told)}, or other ones. It is tried again."
        raise PacsBadResponse(msg)
