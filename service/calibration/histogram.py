"""The reliability histogram: mergeable sums from which every calibration figure follows.

Input: probabilities (C, ...) and labels (...). Output: count, sum of p and sum of y per class and bin, each (C, M).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from ..errors import InvalidProbabilities

BINS: Final = 20
"""Number of bins M; 20 as in Barfoot et al., arXiv 2506.03942."""

CHUNK_VOXELS: Final = 1 << 20
"""Voxels binned at a time; limits the float64 copy that exact sums need to 8 MiB."""


def bin_index(p: npt.NDArray[np.float32], bins: int = BINS) -> npt.NDArray[np.int64]:
    """Return the bin of each probability: ``clip(ceil(p * M) - 1, 0, M - 1)``.

    Bins are right-closed: bin k holds ``k/M < p <= (k + 1)/M``, and p = 0 falls into bin 0. The product is always
    computed in float32: float64 would move 10 of the 19 inner edges of M = 20.

    Args:
        p: any shape, values in [0, 1].
        bins: number of bins M.

    Example:
        >>> bin_index(np.array([0.0, 0.05, 0.051, 1.0], dtype=np.float32)).tolist()
        [0, 0, 1, 19]
    """
    scaled = np.ceil(np.asarray(p, dtype=np.float32) * np.float32(bins))
    return np.clip(scaled.astype(np.int64) - 1, 0, bins - 1)


@dataclass(frozen=True, slots=True, eq=False)
class ReliabilityHistogram:
    """Sums per class c and bin k over voxels; adding histograms pools their voxels.

    Args:
        count: (C, M) int64, number n_ck of voxels whose probability of class c lies in bin k.
        sum_p: (C, M) float64, sum of those probabilities.
        sum_y: (C, M) int64, number of those voxels whose label is c.
    """

    count: npt.NDArray[np.int64]
    sum_p: npt.NDArray[np.float64]
    sum_y: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int, bins: int = BINS) -> Self:
        """Return the histogram without voxels, the neutral element of `+`."""
        shape = (classes, bins)
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.float64), np.zeros(shape, np.int64))

    @classmethod
    def from_probabilities(
        cls,
        probs: npt.NDArray[np.float32],
        labels: npt.NDArray[np.integer],
        structures: Sequence[Sequence[int]] | None = None,
        bins: int = BINS,
    ) -> Self:
        """Bin every voxel of one image once per class or structure.

        Args:
            probs: (C, ...) float32, probability of each class, in [0, 1].
            labels: (...) integers, the true class 0 .. C-1 of each voxel.
            structures: classes that are joined in each row, e.g. the parts of a whole tumour; their probabilities are
                summed. By default each class is a row.
            bins: M, at least 1.

        Raises:
            InvalidProbabilities: NaN, a value outside [0, 1], a label outside 0 .. C-1, or shapes that disagree.
            ValueError: `bins` is no whole number, or less than 1.
        """
        if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
            msg = f"bins is {bins}; expected a whole number, at least 1."
            raise ValueError(msg)
        probs, labels = _checked(probs, labels)
        rows = structures or [(c,) for c in range(len(probs))]
        histogram = cls.empty(len(rows), bins)
        for start in range(0, labels.size, CHUNK_VOXELS):
            chunk = slice(start, start + CHUNK_VOXELS)
            histogram += cls._of_chunk(probs[:, chunk], labels[chunk], rows, bins)
        return histogram

    @classmethod
    def _of_chunk(
        cls, probs: npt.NDArray[np.float32], labels: npt.NDArray[np.integer], rows: Sequence[Sequence[int]], bins: int
    ) -> Self:
        histogram = cls.empty(len(rows), bins)
        for row, classes in enumerate(rows):
            # Rounding can push the sum slightly above 1.
            p = np.minimum(probs[list(classes)].sum(axis=0), 1)
            index = bin_index(p, bins)
            histogram.count[row] = np.bincount(index, minlength=bins)
            histogram.sum_p[row] = np.bincount(index, weights=p, minlength=bins)
            histogram.sum_y[row] = np.bincount(index[np.isin(labels, classes)], minlength=bins)
        return histogram

    def __add__(self, other: Self) -> Self:
        """Return the histogram of the voxels of both.

        Raises:
            InvalidProbabilities: they have other classes or bins.
        """
        if self.count.shape != other.count.shape:
            msg = f"Histograms of (classes, bins) {self.count.shape} and {other.count.shape} do not add up; expected the same shape."
            raise InvalidProbabilities(msg)
        return type(self)(self.count + other.count, self.sum_p + other.sum_p, self.sum_y + other.sum_y)

    def __radd__(self, other: int) -> Self:
        """Return the histogram itself for 0, with which `sum` begins."""
        return self if other == 0 else NotImplemented

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(C,) whether any voxel has the class as its label."""
        return self.sum_y.sum(axis=1) > 0

    @property
    def gap(self) -> npt.NDArray[np.float64]:
        """(C, M) absolute difference between mean probability and observed frequency; NaN in an empty bin."""
        filled = self.count > 0
        gap = np.full(self.count.shape, np.nan)
        np.divide(np.abs(self.sum_p - self.sum_y), self.count, out=gap, where=filled)
        return gap


def as_probabilities(probs: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return an array as float32.

    Raises:
        InvalidProbabilities: it is complex, or one number without an axis of classes.
    """
    array = np.asarray(probs)
    if np.iscomplexobj(array):
        msg = f"Probabilities are {array.dtype}; expected real numbers in [0, 1]."
        raise InvalidProbabilities(msg)
    if array.ndim == 0:
        msg = "Probabilities are one number; expected an array (C, ...) whose first axis is the class."
        raise InvalidProbabilities(msg)
    return array.astype(np.float32, copy=False)


def _checked(
    probs: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.integer]]:
    probs = as_probabilities(probs)
    labels = np.asarray(labels)
    if probs.shape[1:] != labels.shape:
        msg = f"Probabilities of shape {probs.shape} do not belong to labels of shape {labels.shape}: expected (C, *{labels.shape})."
        raise InvalidProbabilities(msg)
    if not np.issubdtype(labels.dtype, np.integer):
        msg = f"Labels are {labels.dtype}; expected integers, one class per voxel."
        raise InvalidProbabilities(msg)
    # Written as "not all in range" to catch NaN, too: its comparisons are false.
    if probs.size and not (probs.min() >= 0 and probs.max() <= 1):
        msg = f"Probabilities span {probs.min()} to {probs.max()}; expected values in [0, 1]. Apply softmax first."
        raise InvalidProbabilities(msg)
    if labels.size and not (labels.min() >= 0 and labels.max() < len(probs)):
        msg = f"Labels span {labels.min()} to {labels.max()}; expected 0 to {len(probs) - 1} for {len(probs)} classes."
        raise InvalidProbabilities(msg)
    return probs.reshape(len(probs), -1), labels.reshape(-1)
