"""Slices -> one evenly spaced, rectangular stack in order, with its affine; anything else is refused with its reason.

ITK's series reader accepts missing, duplicate, tilted and unevenly spaced slices and returns a wrong voxel size
(docs/decisions/0007). Here k grows along the normal of the slices, row direction x column direction.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from highdicom.spatial import create_affine_matrix_from_attributes

from service.errors import DuplicateInstance, GantryTilt, IrregularSpacing, MissingSlices
from service.intake.dicom.instance import SEPARATORS, Slice
from service.intake.formats.geometry import checked_affine, lps_to_ras, reject_shape

SPACING_TOLERANCE: Final = 0.05
"""Fraction of the slice distance by which a slice may lie off its place along the normal."""

SHIFT_TOLERANCE_VOXELS: Final = 0.5
"""Voxels by which a slice may be shifted within its plane, relative to the first: centres stay inside their voxels."""

SAME_PLACE_MM: Final = 0.01
"""Slices closer than this are at the same place."""

_GAP = 1.5
_NAMED_GAPS = 5


def stack(slices: list[Slice]) -> tuple[list[Slice], npt.NDArray[np.float64]]:
    """Return the slices in the order of k, and the RAS affine of (column, row, slice).

    Args:
        slices: of one shape, spacing and orientation; identical slices at one place count once.

    Raises:
        UnsupportedDimensions, VolumeTooLarge: not a volume of acceptable size.
        DuplicateInstance: different slices at one place.
        GantryTilt: the slices are shifted against one another.
        MissingSlices: gaps of about a whole number of slices.
        IrregularSpacing: other differences between the distances.
    """
    slices = without_twins(sorted(slices, key=_distance_mm))
    rows, columns = slices[0].shape
    reject_shape((columns, rows, len(slices)))
    _reject_tilt(slices)
    distances = np.array([_distance_mm(image) for image in slices])
    _reject_gaps(distances - distances[0], several(slices))
    first = slices[0]
    lps = create_affine_matrix_from_attributes(
        image_position=first.position_mm.tolist(),
        image_orientation=first.orientation.ravel().tolist(),
        pixel_spacing=first.spacing_mm.tolist(),
        spacing_between_slices=float(distances[-1] - distances[0]) / (len(slices) - 1),
        index_convention="RD",
    )
    return slices, lps_to_ras(checked_affine(lps[:3, :3], lps[:3, 3], (columns, rows, len(slices))))


def without_twins(slices: list[Slice]) -> list[Slice]:
    """Return the slices without those that repeat the place and voxels of the one before.

    Args:
        slices: sorted by place.

    Raises:
        DuplicateInstance: different slices at one place.
    """
    kept: list[Slice] = []
    different = 0
    for image in slices:
        if not kept or _distance_mm(image) - _distance_mm(kept[-1]) >= SAME_PLACE_MM:
            kept.append(image)
        elif (image.digest, image.rescale) != (kept[-1].digest, kept[-1].rescale):
            different += 1
    if different:
        found = several(slices) or "Several time points, echoes or reconstructions may be mixed"
        advice = "Send one of them only."
        if "b-values" in found or "diffusion" in found:
            advice = "This is a diffusion series: send one volume of it, e.g. that without diffusion weighting (b = 0) or the trace."
        msg = f"{different} of {len(slices)} slices share their position with a different slice. {found}. {advice}"
        raise DuplicateInstance(msg)
    return kept


def several(slices: list[Slice]) -> str:
    """Return in words which acquisitions the slices mix, e.g. "2 echo times were found"; empty for one acquisition."""
    separators = zip(SEPARATORS, zip(*(image.acquired for image in slices), strict=True), strict=True)
    counted = [f"{len(set(values))} {name}" for name, values in separators if 1 < len(set(values)) <= len(slices) // 2]
    return f"{', '.join(counted)} were found" if counted else ""


def _distance_mm(image: Slice) -> float:
    return float(image.position_mm @ np.cross(*image.orientation))


def _reject_tilt(slices: list[Slice]) -> None:
    first, last = slices[0], slices[-1]
    shifts = np.array([(image.position_mm - first.position_mm) @ first.orientation.T for image in slices])
    if np.abs(shifts / first.spacing_mm[::-1]).max() <= SHIFT_TOLERANCE_VOXELS:
        return
    largest = shifts[np.abs(shifts).max(axis=1).argmax()]
    degrees = np.degrees(np.arctan2(np.linalg.norm(shifts[-1]), _distance_mm(last) - _distance_mm(first)))
    msg = f"The slices are shifted against one another by up to {np.linalg.norm(largest):.1f} mm ({degrees:.1f} degrees over the stack), as a tilted gantry leaves them; slices aligned along their normal are expected. Resample the series to a rectangular grid."
    raise GantryTilt(msg)


def _reject_gaps(distances_mm: npt.NDArray[np.float64], acquired: str) -> None:
    """Refuse distances from the first slice that are not the multiples of one step.

    Args:
        distances_mm: from the first slice, ascending.
        acquired: which acquisitions the slices mix, from `several`; that may be the reason.
    """
    mean = distances_mm[-1] / (len(distances_mm) - 1)
    deviation = np.abs(distances_mm - mean * np.arange(len(distances_mm))).max()
    if deviation <= SPACING_TOLERANCE * mean:
        return
    gaps = np.diff(distances_mm)
    step = float(np.median(gaps[gaps < _GAP * gaps.min()]))
    steps = np.rint(gaps / step)
    if (np.abs(gaps - steps * step) <= 2 * SPACING_TOLERANCE * step).all() and steps.max() > 1:
        places = [
            f"{gap:.1f} mm after {at:.1f} mm" for gap, at in zip(gaps, distances_mm, strict=False) if gap > _GAP * step
        ]
        more = f" and {len(places) - _NAMED_GAPS} more" if len(places) > _NAMED_GAPS else ""
        msg = f"The slices lie {step:.2f} mm apart, but {int(steps.sum()) - len(gaps)} of them are missing: gaps of {', '.join(places[:_NAMED_GAPS])}{more}, counted from one end. Send the whole series."
        raise MissingSlices(msg)
    found = f" {acquired}." if acquired else ""
    msg = f"The distances between the slices are {gaps.min():.2f} to {gaps.max():.2f} mm; one distance, within {SPACING_TOLERANCE:.0%}, is expected.{found} Resample the series, or send its evenly spaced part."
    raise IrregularSpacing(msg)
