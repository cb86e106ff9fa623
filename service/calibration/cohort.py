"""Sums per case -> figures of a cohort: macro and micro calibration, Brier, NLL and DSC with person-bootstrap intervals.

Headline figures cover the foreground classes on the native voxel grid of whole images; a class that is absent from a
case is left out of that case. Persons are resampled, not scans: two scans of one person are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .floor import ace_floor
from .histogram import CHUNK_VOXELS, ReliabilityHistogram
from .scores import Scores, ace, brier_sum, ece, mce, nll_sum

REPLICATES: Final = 2000
"""Bootstrap replicates behind each interval."""

FLOOR_REPLICATES: Final = 20
"""Simulated label maps behind each case's ACE floor."""

COVERAGE: Final = 0.95
"""Nominal coverage of the percentile intervals."""


@dataclass(frozen=True, slots=True, eq=False)
class CaseSums:
    """The sums of one case from which a cohort's figures follow; additive except for the floor.

    Args:
        case: name of the case.
        person: whose scan it is.
        histogram: sums per class (or structure) and bin, (C, M).
        brier: Brier score summed over voxels.
        nll: negative log likelihood summed over voxels, in nats.
        intersection: (C,) voxels where prediction and reference agree on the class.
        predicted: (C,) voxels of the class in the argmax mask.
        floor: (C,) ACE floor of this image.
    """

    case: str
    person: str
    histogram: ReliabilityHistogram
    brier: float
    nll: float
    intersection: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    floor: Scores

    @property
    def reference(self) -> npt.NDArray[np.int64]:
        """(C,) voxels of the class in the reference."""
        return self.histogram.sum_y.sum(axis=1)

    @property
    def voxels(self) -> int:
        """Number of voxels in the image."""
        return int(self.histogram.count[0].sum())

    @property
    def dsc(self) -> Scores:
        """(C,) Dice similarity coefficient ``2 |A n B| / (|A| + |B|)``; NaN for a class that the reference lacks."""
        size = self.predicted + self.reference
        dice = np.divide(2 * self.intersection, size, out=np.full(size.shape, np.nan), where=size > 0)
        return np.where(self.reference > 0, dice, np.nan)


def measure_case(
    case: str,
    person: str,
    probs: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    structures: Sequence[Sequence[int]] | None = None,
) -> CaseSums:
    """Return the sums of one case with a known reference.

    Args:
        case: name of the case.
        person: whose scan it is.
        probs: (C, D, H, W) probabilities on the native grid.
        mask: (D, H, W) the predicted class of each voxel.
        labels: (D, H, W) the reference, 0 .. C-1.
        structures: classes that are joined in each row of the sums, background first; by default each class is a row.

    Raises:
        InvalidProbabilities: as `ReliabilityHistogram.from_probabilities`.
    """
    classes = len(probs)
    rows = structures or [(c,) for c in range(classes)]
    histogram = ReliabilityHistogram.from_probabilities(probs, labels, rows)
    confusion = _confusion(labels.ravel(), mask.ravel(), classes)
    return CaseSums(
        case=case,
        person=person,
        histogram=histogram,
        brier=brier_sum(probs, labels),
        nll=nll_sum(probs, labels),
        intersection=np.array([confusion[np.ix_(row, row)].sum() for row in rows]),
        predicted=np.array([confusion[:, row].sum() for row in rows]),
        floor=ace_floor(probs, rows, replicates=FLOOR_REPLICATES, seed=0),
    )


def _confusion(labels: npt.NDArray[np.integer], mask: npt.NDArray[np.integer], classes: int) -> npt.NDArray[np.int64]:
    """Return the number of voxels by true class (rows) and predicted class (columns), (C, C)."""
    pairs = np.zeros(classes**2, np.int64)
    for start in range(0, labels.size, CHUNK_VOXELS):
        chunk = slice(start, start + CHUNK_VOXELS)
        pairs += np.bincount(labels[chunk].astype(np.int64) * classes + mask[chunk], minlength=classes**2)
    return pairs.reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class BootstrapEstimate:
    """A figure with its person-bootstrap percentile interval at `COVERAGE`."""

    value: float
    low: float
    high: float


def cohort_scores(cases: Sequence[CaseSums], *, seed: int = 0) -> dict[str, BootstrapEstimate]:
    """Return every headline figure of a cohort with its interval over persons; keys as in `cohort_draws`."""
    return {name: estimate(draws) for name, draws in cohort_draws(cases, person_weights(cases, seed)).items()}


def cohort_draws(cases: Sequence[CaseSums], weights: npt.NDArray[np.int64]) -> dict[str, Scores]:
    """Return every headline figure over the foreground classes 1 .. C-1 for each row of weights, (rows,).

    Keys: ``dsc``, ``ace_macro``, ``ace_floor``, ``ace_excess``, ``ece_macro``, ``mce_macro``, ``ace_micro``,
    ``ece_micro``, ``mce_micro``, ``brier``, ``nll``.

    Macro is the mean over the classes present in a case, then over cases. Micro pools the voxels of all cases per
    class, then takes the mean over classes. Brier and NLL are means over voxels, then over cases.

    Args:
        cases: N cases.
        weights: (rows, N) how often each case counts. The same weights for the same cases make two cohorts paired.
    """
    foreground = slice(1, None)
    per_voxel = np.array([(case.brier / case.voxels, case.nll / case.voxels) for case in cases])
    whole = {"brier": _weighted_mean(per_voxel[:, 0], weights), "nll": _weighted_mean(per_voxel[:, 1], weights)}
    return _macro(cases, weights, foreground) | _micro(cases, weights, foreground) | whole


def class_scores(cases: Sequence[CaseSums], class_index: int, *, seed: int = 0) -> dict[str, BootstrapEstimate]:
    """Return the figures of one class; keys as in `cohort_draws`, without Brier and NLL, which are not per class."""
    weights = person_weights(cases, seed)
    one = slice(class_index, class_index + 1)
    return {
        name: estimate(draws) for name, draws in (_macro(cases, weights, one) | _micro(cases, weights, one)).items()
    }


def person_weights(cases: Sequence[CaseSums], seed: int) -> npt.NDArray[np.int64]:
    """Return how often each case counts, (1 + REPLICATES, N): once in row 0, then as drawn with its person."""
    persons, owner = np.unique([case.person for case in cases], return_inverse=True)
    draws = np.random.default_rng(seed).integers(len(persons), size=(REPLICATES, len(persons)))
    times_drawn = np.stack([np.bincount(draw, minlength=len(persons)) for draw in draws])
    return np.vstack([np.ones(len(cases), np.int64), times_drawn[:, owner]])


def estimate(draws: Scores) -> BootstrapEstimate:
    """Return the figure of row 0 with the percentile interval of the other rows; NaN where undefined.

    Args:
        draws: (1 + R,) a figure of the cohort itself, then of its R resamples.
    """
    value, resampled = float(draws[0]), draws[1:][np.isfinite(draws[1:])]
    if not resampled.size:
        return BootstrapEstimate(value, float("nan"), float("nan"))
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return BootstrapEstimate(value, float(low), float(high))


def _macro(cases: Sequence[CaseSums], weights: npt.NDArray[np.int64], classes: slice) -> dict[str, Scores]:
    floor = np.stack([np.where(case.histogram.present, case.floor, np.nan) for case in cases])
    ace_of = np.stack([ace(case.histogram) for case in cases])
    per_class = {
        "dsc": np.stack([case.dsc for case in cases]),
        "ace_macro": ace_of,
        "ace_floor": floor,
        "ace_excess": ace_of - floor,
        "ece_macro": np.stack([ece(case.histogram) for case in cases]),
        "mce_macro": np.stack([mce(case.histogram) for case in cases]),
    }
    return {name: _weighted_mean(_nanmean(values[:, classes]), weights) for name, values in per_class.items()}


def _micro(cases: Sequence[CaseSums], weights: npt.NDArray[np.int64], classes: slice) -> dict[str, Scores]:
    rows, bins = len(weights), cases[0].histogram.count.shape[1]

    def pooled(sums: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        return np.tensordot(weights, np.stack(sums), axes=1).reshape(-1, bins)

    histogram = ReliabilityHistogram(
        pooled([case.histogram.count for case in cases]).astype(np.int64),
        pooled([case.histogram.sum_p for case in cases]).astype(np.float64),
        pooled([case.histogram.sum_y for case in cases]).astype(np.int64),
    )
    scores = {"ace_micro": ace(histogram), "ece_micro": ece(histogram), "mce_micro": mce(histogram)}
    return {name: _nanmean(values.reshape(rows, -1)[:, classes]) for name, values in scores.items()}


def _nanmean(values: Scores) -> Scores:
    """Return the mean of each row over its finite entries; NaN for a row without any."""
    finite = np.isfinite(values)
    number = finite.sum(axis=1)
    total = np.where(finite, values, 0).sum(axis=1)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)


def _weighted_mean(values: Scores, weights: npt.NDArray[np.int64]) -> Scores:
    """Return the mean over cases for each row of weights, (rows,); cases without a value are left out."""
    finite = np.isfinite(values)
    number = weights @ finite
    return np.divide(weights @ np.where(finite, values, 0), number, out=np.full(number.shape, np.nan), where=number > 0)
