"""Scores of one histogram or one image, one equation per function.

Notation: n_ck voxels in bin k of class c, P_ck their mean probability of c, Y_ck the frequency of label c among them.
Equations: Barfoot et al., arXiv 2506.03942, section 2; Guo et al., ICML 2017 (ECE, MCE).
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .histogram import ReliabilityHistogram

Scores: TypeAlias = npt.NDArray[np.float64]


def ece(histogram: ReliabilityHistogram, *, include_absent: bool = False) -> Scores:
    """Return the expected calibration error ``sum_k n_ck |P_ck - Y_ck| / sum_k n_ck`` of each class, (C,) in [0, 1].

    A class that is absent from the labels is NaN unless `include_absent`.
    """
    weighted = np.abs(histogram.sum_p - histogram.sum_y).sum(axis=1)
    voxels = histogram.count.sum(axis=1)
    error = np.divide(weighted, voxels, out=np.full(voxels.shape, np.nan), where=voxels > 0)
    return _without_absent(error, histogram, include_absent=include_absent)


def ace(histogram: ReliabilityHistogram, *, include_absent: bool = False) -> Scores:
    """Return the average calibration error ``mean_k |P_ck - Y_ck|`` over non-empty bins of each class, (C,) in [0, 1].

    ACE is not a proper score: it can fall while p gets worse, and it has a floor above zero in a finite image
    (`service.calibration.floor`). Read it together with Brier, NLL and the floor. A class that is absent from the
    labels is NaN unless `include_absent`.
    """
    gap = histogram.gap
    filled = (histogram.count > 0).sum(axis=1)
    total = np.nansum(gap, axis=1)
    error = np.divide(total, filled, out=np.full(filled.shape, np.nan), where=filled > 0)
    return _without_absent(error, histogram, include_absent=include_absent)


def mce(histogram: ReliabilityHistogram, *, include_absent: bool = False) -> Scores:
    """Return the maximum calibration error ``max_k |P_ck - Y_ck|`` over non-empty bins of each class, (C,) in [0, 1].

    A class that is absent from the labels is NaN unless `include_absent`.
    """
    error = np.where(histogram.count > 0, histogram.gap, -np.inf).max(axis=1)
    error[np.isneginf(error)] = np.nan
    return _without_absent(error, histogram, include_absent=include_absent)


def brier_sum(probs: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> float:
    """Return the Brier score summed over voxels, ``sum_i sum_c (p_ci - y_ci)^2``; per voxel it lies in [0, 2].

    Args:
        probs: (C, ...) probabilities.
        labels: (...) integers 0 .. C-1.
    """
    squares = np.square(probs, dtype=np.float64).sum()
    # sum_c (p_c - y_c)^2 = sum_c p_c^2 - 2 p_true + 1: no one-hot copy of the labels is needed.
    return float(squares - 2 * _p_true(probs, labels).sum(dtype=np.float64) + labels.size)


def nll_sum(probs: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> float:
    """Return the negative log likelihood summed over voxels, ``-sum_i ln p_(y_i) i``, in nats.

    A probability of 0 for the true class counts as the smallest normal float32 (87.3 nats) instead of infinity.

    Args:
        probs: (C, ...) probabilities.
        labels: (...) integers 0 .. C-1.
    """
    p_true = np.maximum(_p_true(probs, labels), np.finfo(np.float32).tiny)
    return float(-np.log(p_true, dtype=np.float64).sum())


def _p_true(probs: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    return np.take_along_axis(probs, labels[np.newaxis].astype(np.intp), axis=0)[0]


def _without_absent(error: Scores, histogram: ReliabilityHistogram, *, include_absent: bool) -> Scores:
    return error if include_absent else np.where(histogram.present, error, np.nan)
