"""Calibration metrics of one segmented image, as plain functions of probabilities and labels; numpy only.

Shapes: `probs` is (C, ...) with the probability of each of C classes in [0, 1], `labels` is (...) with the true class,
an integer 0 .. C-1. Both may be numpy arrays or anything that `numpy.asarray` takes, such as a detached CPU tensor.
`ace`, `ece`, `mce` and `ace_floor` return one float64 per class, (C,). In the first three a class that is absent from the
labels is NaN, so take `nanmean` over the classes that you report (the papers leave out the background). `brier` and `nll`
return one number for the image, `reliability_histogram` the sums from which `ace_of`, `ece_of` and `mce_of` compute.

Bins are right-closed, ``k/M < p <= (k+1)/M``, with M = 20 by default, as in Barfoot et al., arXiv 2506.03942. To pool
several images before scoring, add their histograms: `ace_of(reliability_histogram(a...) + reliability_histogram(b...))`;
`sum` adds up a list of them.

All functions raise InvalidProbabilities, a ValueError, on NaN, values outside [0, 1], complex values, labels outside
0 .. C-1, or shapes that disagree, and ValueError unless `bins` is a whole number >= 1.
"""

from __future__ import annotations  # `help` shows an alias by its name

import numpy as np
from numpy.typing import ArrayLike

from .calibration import floor as _floor
from .calibration import scores as _scores
from .calibration.histogram import BINS, ReliabilityHistogram, as_probabilities
from .calibration.scores import Scores
from .calibration.scores import ace as ace_of
from .calibration.scores import ece as ece_of
from .calibration.scores import mce as mce_of

__all__ = [
    "BINS",
    "ReliabilityHistogram",
    "ace",
    "ace_floor",
    "ace_of",
    "brier",
    "ece",
    "ece_of",
    "mce",
    "mce_of",
    "nll",
    "reliability_histogram",
]


def reliability_histogram(probs: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> ReliabilityHistogram:
    """Return voxel count, sum of p and sum of y of each class and bin, each (C, M); histograms add up."""
    return ReliabilityHistogram.from_probabilities(as_probabilities(probs), np.asarray(labels), bins=bins)


def ace(probs: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> Scores:
    """Return the average calibration error, ``mean_k |P_ck - Y_ck|`` over the filled bins k, (C,) in [0, 1].

    P_ck is the mean probability in bin k, Y_ck the share of its voxels that carry label c (arXiv 2506.03942, section 2).
    ACE is not a proper score and has a floor above 0: read it beside `ace_floor` and `brier`.

    Example:
        >>> ace([[0.75] * 4, [0.25] * 4], [0, 0, 1, 1]).tolist()
        [0.25, 0.25]
    """
    return ace_of(reliability_histogram(probs, labels, bins=bins))


def ece(probs: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> Scores:
    """Return the expected calibration error, ``sum_k n_ck |P_ck - Y_ck| / sum_k n_ck``, (C,) (Guo et al., ICML 2017)."""
    return ece_of(reliability_histogram(probs, labels, bins=bins))


def mce(probs: ArrayLike, labels: ArrayLike, *, bins: int = BINS) -> Scores:
    """Return the maximum calibration error, ``max_k |P_ck - Y_ck|`` over the filled bins k, (C,) (Guo et al., 2017)."""
    return mce_of(reliability_histogram(probs, labels, bins=bins))


def ace_floor(
    probs: ArrayLike, *, replicates: int = 20, seed: int = 0, correlation_voxels: float = 0.0, bins: int = BINS
) -> Scores:
    """Return the ACE that a perfectly calibrated model would score on this image, (C,): the mean over drawn labels.

    Args:
        probs: (C, ...), summing to 1 over the classes.
        replicates: number of label maps that are drawn from `probs`.
        seed: of the draws; the same seed gives the same floor.
        correlation_voxels: standard deviation of a Gaussian kernel, in voxels, by which neighbouring labels agree. 0
            draws each voxel on its own, which is a lower bound of the true floor.
        bins: M.
    """
    array = as_probabilities(probs)
    return _floor.ace_floor(array, replicates=replicates, seed=seed, correlation_voxels=correlation_voxels, bins=bins)


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Return the Brier score, ``mean_i sum_c (p_ci - y_ci)^2``, in [0, 2]; a proper score."""
    array, truth = as_probabilities(probs), np.asarray(labels)
    reliability_histogram(array, truth)  # raises on what is no probability
    return _scores.brier_sum(array, truth) / truth.size


def nll(probs: ArrayLike, labels: ArrayLike) -> float:
    """Return the negative log likelihood, ``-mean_i ln p_(y_i) i``, in nats; p = 0 counts as the smallest float32."""
    array, truth = as_probabilities(probs), np.asarray(labels)
    reliability_histogram(array, truth)  # raises on what is no probability
    return _scores.nll_sum(array, truth) / truth.size
