"""The shift test: is an answer like the answers about the persons of the card?

An answer is described by numbers of its image, mask and confidence (`service.pipeline.features`). How far they lie from those
of the card's persons is one score, a Mahalanobis distance. The share of persons whose answers lie at least as far is
the p-value: it is at most alpha for a share of at most about alpha of new persons of the same kind.

The p-value is cross-conformal (Vovk, Annals of Mathematics and Artificial Intelligence 74:9-28, 2015): centre, scales and
correlations by which a person is judged were computed from the persons of the other folds. A person counts once, with
their farthest answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

ALPHA: Final = 0.05
"""At this p-value or below an answer is withdrawn: at most about this share of false alarms."""

LEAST_PERSONS: Final = 19
"""With fewer no p-value can reach alpha: the smallest is 1 / (persons + 1)."""

SHRINKAGE: Final = 0.3
"""Share of the identity in the correlation matrix: there are hardly more persons than features."""

NAMED: Final = 5
"""At most this many features are named."""

_NORMAL: Final = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""

_CLIPPED: Final = 5.0
"""Standardised values are clipped here before they are correlated, so that no single answer decides."""

_DEGENERATE: Final = 1e-6

_LEAST: Final = 1e-6
"""Smaller values are this when their logarithm is taken."""


@dataclass(frozen=True, slots=True)
class Feature:
    """What a number is.

    Args:
        unit: of its values.
        log: whether it is compared by its logarithm.
    """

    unit: str
    log: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """The features of one answer about a known person.

    Args:
        person: whom the scan shows.
        fold: the fold of the person; the network that answered was trained without it.
        values: of each feature, in the order of the test.
    """

    person: str
    fold: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Deviation:
    """A feature that lies outside of what the card's persons show.

    Args:
        feature: its name.
        unit: of the value.
        value: of the scan.
        low: least value among the persons.
        high: largest value among the persons.
    """

    feature: str
    unit: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ShiftVerdict:
    """What the test says about one answer.

    Args:
        p: p-value in (0, 1].
        n_persons: with whom it was compared.
        off: the features outside the persons' range, the farthest first; may be empty though p is small, and the reverse.
    """

    p: float
    n_persons: int
    off: tuple[Deviation, ...] = ()

    @property
    def shifted(self) -> bool:
        """Whether the answer is unlike those of the card's persons, at the level `ALPHA`."""
        return self.p <= ALPHA


class ShiftTest:
    """The test against one set of observations."""

    def __init__(self, features: Mapping[str, Feature], observations: Sequence[Observation]) -> None:
        """Fit the folds.

        Args:
            features: by name, in the order of the values.
            observations: several of a person are allowed, e.g. two sides, or milder images of the same scan.

        Raises:
            ValueError: fewer persons than `LEAST_PERSONS`, fewer than two folds, a value that is not finite, or a person in two folds.
        """
        self._features = dict(features)
        self._log = np.array([feature.log for feature in features.values()])
        self._stated = np.array([observation.values for observation in observations], np.float64)
        self._folds = np.array([observation.fold for observation in observations])
        persons, self._person = np.unique([observation.person for observation in observations], return_inverse=True)
        self.n_persons = len(persons)
        self._reject_unfit()
        self._values = self._scaled(self._stated)
        self._metrics = {
            str(fold): _Metric.fitted(self._values[self._folds != fold]) for fold in np.unique(self._folds)
        }
        self._scale = _scale_of(self._values)
        self._worst = np.full(self.n_persons, -np.inf)
        self._fold_of = np.empty(self.n_persons, self._folds.dtype)
        for fold, metric in self._metrics.items():
            held_out = self._folds == fold
            np.maximum.at(self._worst, self._person[held_out], metric.distances(self._values[held_out]))
            self._fold_of[self._person[held_out]] = fold

    def _reject_unfit(self) -> None:
        if self.n_persons < LEAST_PERSONS:
            msg = f"{self.n_persons} persons; a shift test needs at least {LEAST_PERSONS}"
            raise ValueError(msg)
        if len(np.unique(self._folds)) < 2:  # noqa: PLR2004 - one to fit, one to judge
            msg = "a shift test needs persons in at least two folds"
            raise ValueError(msg)
        if self._stated.shape[1] != len(self._features) or not np.isfinite(self._stated).all():
            msg = f"expected {len(self._features)} finite values in each observation"
            raise ValueError(msg)
        pairs = set(zip(self._person.tolist(), self._folds.tolist(), strict=True))
        if len(pairs) != self.n_persons:
            msg = "a person is in two folds"
            raise ValueError(msg)

    def verdict(self, values: Mapping[str, float]) -> ShiftVerdict:
        """Compare an answer with the persons.

        Args:
            values: of every feature by name; NaN or infinite ones lie farther than anything.
        """
        row = np.array([values[name] for name in self._features], np.float64)
        if not np.isfinite(row).all():
            return ShiftVerdict(1 / (self.n_persons + 1), self.n_persons, self._off(row))
        return ShiftVerdict(self._p(self._scaled(row)), self.n_persons, self._off(row))

    def _p(self, row: Values) -> float:
        score = {fold: float(metric.distances(row[None])[0]) for fold, metric in self._metrics.items()}
        scores = np.array([score[str(fold)] for fold in self._fold_of])
        return (1 + int((self._worst >= scores).sum())) / (1 + self.n_persons)

    def _scaled(self, values: Values) -> Values:
        """Return values, (..., d), with the logarithm of those that are compared by it."""
        return np.where(self._log, np.log(np.maximum(values, _LEAST)), values)

    def _off(self, row: Values) -> tuple[Deviation, ...]:
        low, high = self._stated.min(axis=0), self._stated.max(axis=0)
        scaled = [self._scaled(values) for values in (low, row, high)]
        with np.errstate(invalid="ignore"):
            beyond = np.maximum(scaled[0] - scaled[1], scaled[1] - scaled[2]) / self._scale
        beyond[~np.isfinite(row)] = np.inf
        names = list(self._features)
        order = [int(k) for k in np.argsort(-beyond, kind="stable")[:NAMED] if beyond[k] > 0]
        return tuple(
            Deviation(names[k], self._features[names[k]].unit, float(row[k]), float(low[k]), float(high[k]))
            for k in order
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Metric:
    """A Mahalanobis distance: centre and scale of each feature, (d,), and the inverse of their correlation, (d, d)."""

    centre: Values
    scale: Values
    precision: Values

    @classmethod
    def fitted(cls, values: Values) -> "_Metric":
        """Fit to observations, (n, d): median, median absolute deviation, and the shrunk correlation."""
        centre, scale = np.median(values, axis=0), _scale_of(values)
        clipped = np.clip((values - centre) / scale, -_CLIPPED, _CLIPPED)
        clipped -= clipped.mean(axis=0)
        deviation = np.maximum(clipped.std(axis=0), _DEGENERATE)
        correlation = (clipped / deviation).T @ (clipped / deviation) / len(values)
        shrunk = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(len(centre))
        return cls(centre, scale, np.linalg.inv(shrunk))

    def distances(self, values: Values) -> Values:
        """Return the distance of each observation, (n, d) -> (n,)."""
        standardised = (values - self.centre) / self.scale
        return np.sqrt(np.einsum("nd,de,ne->n", standardised, self.precision, standardised))


def _scale_of(values: Values) -> Values:
    """Return the robust deviation of each feature over observations, (n, d) -> (d,)."""
    spread = _NORMAL * np.median(np.abs(values - np.median(values, axis=0)), axis=0)
    # A feature that most observations share, e.g. one piece, has no median deviation.
    return np.maximum(np.maximum(spread, values.std(axis=0) / 2), _DEGENERATE)
