"""Logits of a result and a reference mask -> scores of this one image, summed slab by slab.

Needs torch: the API runs it in a process of its own (`service.executors.on_demand`).
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from service.bundle.card import CaseRecord
from service.bundle.reliability import reliability_of
from service.calibration.cohort import CaseSums
from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import Scores, ace, brier_sum, ece, mce, nll_sum
from service.derived.maps import slabs_of
from service.derived.surfaces import hd95_mm
from service.result.files import status_of
from service.result.frame import Frame, read_frame
from service.schemas import Measured, MeasuredStructure

SOURCE = "This image against the reference that was sent, measured"
"""Source line of every reliability diagram."""


def measure(result: Path, classes: npt.NDArray[np.uint8], model: str) -> Measured:
    """Return the scores and the reliability of one image.

    Args:
        result: folder with the logits and the frame.
        classes: (D, H, W) the reference as output channels, on the scan's grid.
        model: identity of the bundle.
    """
    frame = read_frame(result)
    reference = nib.orientations.apply_orientation(classes, frame.orientation)
    sums, mask = _sums(result, frame, reference)
    histogram = sums.histogram
    spacing_mm = np.linalg.norm(frame.affine_ras[:3, :3], axis=0)
    figures: dict[str, Scores] = {
        "dsc": sums.dsc,
        "hd95_mm": _distances(reference, mask, frame, spacing_mm),
        "ace": ace(histogram),
        "ece": ece(histogram),
        "mce": mce(histogram),
    }
    names = [structure.name for structure in frame.config.structures]
    return Measured(
        model=model,
        statement=status_of(result),
        structures=[
            MeasuredStructure(
                name=name,
                reference_voxels=int(sums.reference[row]),
                predicted_voxels=int(sums.predicted[row]),
                **{figure: _or_null(values[row]) for figure, values in figures.items()},
            )
            for row, name in enumerate(names, start=1)
        ],
        brier=sums.brier / sums.voxels,
        nll=sums.nll / sums.voxels,
        reliability=reliability_of([CaseRecord.of(sums, frame.scan_shape, spacing_mm.tolist())], names, SOURCE),
    )


def _distances(
    reference: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], frame: Frame, spacing_mm: Scores
) -> Scores:
    """Return HD95 of each row of the histogram, NaN for the background.

    Args:
        reference: (D, H, W) classes in the network's axis order.
        mask: (D, H, W) predicted classes in the network's axis order.
        frame: of the result.
        spacing_mm: (3,) along the scan's axes.
    """
    spacing = spacing_mm[np.argsort([axis for axis, _flip in frame.orientation])].tolist()
    rows = (structure.channels for structure in frame.config.structures)
    return np.array([np.nan, *(hd95_mm(np.isin(reference, row), np.isin(mask, row), spacing) for row in rows)])


def _sums(result: Path, frame: Frame, reference: npt.NDArray[np.uint8]) -> tuple[CaseSums, npt.NDArray[np.uint8]]:
    """Return the sums and the predicted mask; mask and reference are in the network's axis order."""
    rows = [(0,), *(structure.channels for structure in frame.config.structures)]
    channels = len(frame.config.labels)
    mask = np.empty(reference.shape, np.uint8)
    histogram = ReliabilityHistogram.empty(len(rows))
    confusion = np.zeros((channels, channels), np.int64)
    brier = nll = 0.0
    for window, probs in slabs_of(result, frame):
        labels = np.ascontiguousarray(reference[window])
        histogram += ReliabilityHistogram.from_probabilities(probs, labels, rows)
        mask[window] = probs.argmax(axis=0)
        pairs = labels.astype(np.intp) * channels + mask[window]
        confusion += np.bincount(pairs.ravel(), minlength=channels**2).reshape(channels, channels)
        brier += brier_sum(probs, labels)
        nll += nll_sum(probs, labels)
    sums = CaseSums(
        case="",
        person="",
        histogram=histogram,
        brier=brier,
        nll=nll,
        intersection=np.array([confusion[np.ix_(row, row)].sum() for row in rows]),
        predicted=np.array([confusion[:, row].sum() for row in rows]),
        floor=np.full(len(rows), np.nan),  # not computed: its simulation needs all probabilities in memory at once
    )
    return sums, mask


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
