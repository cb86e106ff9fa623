"""Compares results of one scan with one another and with the reference."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import ace, ece
from service.derived.maps import slabs_of
from service.result.files import MASK
from service.result.frame import read_frame


@dataclass(frozen=True)
class Agreement:
    """Agreement of a result with that of float32 (DSC, differences of probabilities) and with the reference."""

    dsc_fp32: float
    max_dp: float
    mean_dp: float
    dsc: float
    ace: float
    ece: float


def agreement(result: Path, fp32: Path, reference: Path) -> Agreement:
    """Return the agreement of a result; scores are means over the structures.

    Args:
        result: folder of our result.
        fp32: folder of the result of torch in float32.
        reference: label file.
    """
    frame = read_frame(result)
    values = np.array([label.value for label in frame.config.labels])
    labels = np.searchsorted(values, np.asarray(nib.Nifti1Image.from_filename(reference).dataobj)).astype(np.uint8)
    oriented = nib.orientations.apply_orientation(labels, frame.orientation)
    histogram = ReliabilityHistogram.empty(len(values))
    largest = total = 0.0
    for (window, probs), (_, theirs) in zip(slabs_of(result, frame), slabs_of(fp32, read_frame(fp32)), strict=True):
        gap = np.abs(probs - theirs)
        largest, total = max(largest, float(gap.max())), total + float(gap.sum(dtype=np.float64))
        histogram += ReliabilityHistogram.from_probabilities(probs, np.ascontiguousarray(oriented[window]))
    mask = mask_of(result / MASK)
    return Agreement(
        dsc_fp32=dsc(mask, mask_of(fp32 / MASK), values),
        max_dp=largest,
        mean_dp=total / labels.size / len(values),
        dsc=dsc(mask, values[labels], values),
        ace=float(np.nanmean(ace(histogram)[1:])),
        ece=float(np.nanmean(ece(histogram)[1:])),
    )


def mask_of(file: Path) -> npt.NDArray[np.uint8]:
    """Return the label values of a mask file, (D, H, W)."""
    return np.asarray(nib.Nifti1Image.from_filename(file).dataobj).astype(np.uint8)


def dsc(mask: npt.NDArray[np.integer], other: npt.NDArray[np.integer], values: npt.NDArray[np.integer]) -> float:
    """Return the mean DSC over the structures that either mask holds, without the background, the first value."""
    scores = []
    for value in values[1:]:
        in_mask, in_other = mask == value, other == value
        if size := int(in_mask.sum()) + int(in_other.sum()):
            scores.append(2 * int((in_mask & in_other).sum()) / size)
    return float(np.mean(scores)) if scores else 1.0
