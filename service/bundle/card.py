"""The calibration card: what was measured about a bundle, on whom, and all that is needed to compute it again.

`calibration.json` in a bundle. The per-case sums are the only stored truth: every score follows from them by
`service.calibration.cohort`. Version 1 is frozen as committed in `schemas/`; a later minor version may add fields.
"""

import datetime as dt
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from service.bundle.schema import Declaration
from service.calibration.cohort import BootstrapEstimate, CaseSums, class_scores, cohort_scores
from service.calibration.histogram import BINS, ReliabilityHistogram

SCHEMA_VERSION: Final = "1.0"
"""Version of the card that this module reads and writes."""

Engine = Literal["torch", "openvino"]
Precision = Literal["fp32", "bf16", "fp16"]


class Interval(Declaration):
    """A figure with its 95 % person-bootstrap percentile interval; null where it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: BootstrapEstimate) -> "Interval":
        """Return the estimate with NaN as null."""
        value, low, high = (None if np.isnan(x) else x for x in (estimate.value, estimate.low, estimate.high))
        return cls(value=value, low=low, high=high)


class CaseRecord(Declaration):
    """Sums of one case over its voxels; the outer list of each matrix is the structure, background first.

    The structures are those of `ServiceConfig.structures`: the bundle's regions where it declares any, else its labels.
    """

    case: str
    person: str
    count: list[list[int]]
    """(C, M) voxels per confidence bin."""
    sum_p: list[list[float]]
    """(C, M) sum of the predicted probabilities."""
    sum_y: list[list[int]]
    """(C, M) voxels that carry the label."""
    brier: float
    """Summed over voxels."""
    nll: float
    """Summed over voxels, in nats."""
    intersection: list[int]
    """(C,) voxels where argmax mask and reference agree on the class."""
    predicted: list[int]
    """(C,) voxels of the class in the argmax mask."""
    ace_floor: list[float]
    """(C,) mean ACE of labels drawn from the predicted probabilities themselves, voxels independent."""
    shape: tuple[int, int, int]
    """Voxels along i, j, k of the scan as it came."""
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, sums: CaseSums, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> "CaseRecord":
        """Return the record of a measured case."""
        return cls(
            case=sums.case,
            person=sums.person,
            count=sums.histogram.count.tolist(),
            sum_p=sums.histogram.sum_p.tolist(),
            sum_y=sums.histogram.sum_y.tolist(),
            brier=sums.brier,
            nll=sums.nll,
            intersection=sums.intersection.tolist(),
            predicted=sums.predicted.tolist(),
            ace_floor=sums.floor.tolist(),
            shape=shape,
            spacing_mm=spacing_mm,
        )

    def sums(self) -> CaseSums:
        """Return the same sums as arrays, ready for `service.calibration`."""
        return CaseSums(
            case=self.case,
            person=self.person,
            histogram=ReliabilityHistogram(
                np.array(self.count, np.int64), np.array(self.sum_p, np.float64), np.array(self.sum_y, np.int64)
            ),
            brier=self.brier,
            nll=self.nll,
            intersection=np.array(self.intersection, np.int64),
            predicted=np.array(self.predicted, np.int64),
            floor=np.array(self.ace_floor, np.float64),
        )


class Measurement(Declaration):
    """What one engine at one precision scored on the card's cases."""

    engine: Engine
    precision: Precision
    platform: str
    """Processor and library versions of the machine that measured."""
    cases: list[CaseRecord]
    scores: dict[str, Interval]
    """Foreground figures, keys as `service.calibration.cohort.cohort_scores`."""
    class_scores: dict[str, dict[str, Interval]]
    """The same per structure name, keys as `service.calibration.cohort.class_scores`."""

    @classmethod
    def of(
        cls, engine: Engine, precision: Precision, platform: str, cases: list[CaseRecord], structures: list[str]
    ) -> "Measurement":
        """Return the measurement of these cases with its scores.

        Args:
            engine: what ran the network.
            precision: of the network's arithmetic.
            platform: processor and library versions.
            cases: the per-case sums.
            structures: names of the rows 1 .. C-1.
        """
        sums = [case.sums() for case in cases]
        return cls(
            engine=engine,
            precision=precision,
            platform=platform,
            cases=cases,
            scores={name: Interval.of(figure) for name, figure in cohort_scores(sums).items()},
            class_scores={
                structure: {name: Interval.of(figure) for name, figure in class_scores(sums, index).items()}
                for index, structure in enumerate(structures, start=1)
            },
        )


class Population(Declaration):
    """Whom the card speaks about."""

    dataset: str
    citation: str
    licence: str
    modality: str
    anatomy: str
    protocol: Literal["held-out", "out-of-fold"]
    """held-out: one model on persons that it never saw. out-of-fold: each person by the model that did not see them."""
    split: str
    """Which part of the data set, in words."""
    split_unit: Literal["person"] = "person"
    n_persons: Annotated[int, Field(ge=1)]
    n_cases: Annotated[int, Field(ge=1)]


class Estimator(Declaration):
    """A fitted label-free estimator, e.g. of Dice or volume, with what is needed to refit and replay it."""

    name: str
    structure: str
    method: str
    coefficients: dict[str, float]
    alphas: list[float]
    """Miscoverage levels that may be asked for; no others."""
    persons: list[str]
    residuals: list[float]
    """One per case, in the order of `persons`: the scores behind the conformal quantiles."""


class RiskControl(Declaration):
    """Loss curves from which a mask with a controlled risk is derived for any alpha on the list."""

    name: str
    structure: str
    risk: str
    alphas: list[float]
    thresholds: list[float]
    persons: list[str]
    losses: list[list[float]]
    """(n, T) loss of each case, in the order of `persons`, at each threshold."""


class ShiftReference(Declaration):
    """Values of one feature over the card's cases, against which a new scan is compared."""

    feature: str
    unit: str
    values: list[float]


class Locating(Declaration):
    """How well the bundle's locator does on scans drawn from label maps of heads that it never saw.

    Made scans stand in for real ones: no expert labels of whole heads were at hand, so locating in real scans is not
    validated. Box: that in which the network looks first.
    """

    heads: Annotated[int, Field(ge=1)]
    """Held-out label maps."""
    scans: Annotated[int, Field(ge=1)]
    """Drawn from them, each with every part whole in its field of view."""
    boxes_hold: int
    """Scans in which the box of every part holds at least 99 % of its structure."""
    distance_mm_median: float | None
    """Between the centre of a box and the middle of its structure; null when nothing was found."""
    distance_mm_p95: float | None
    empty_scans: int
    """Scans that show none of the anatomy: shapes that are no head, and heads cut off above it."""
    found_in_empty: int
    """Of these, scans in which something was found."""
    seed: int
    validated_on_experts: Literal[False] = False


class CalibrationCard(Declaration):
    """The card as a whole."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    model: str
    model_version: str
    date: dt.date
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of models/model.safetensors."""
    config_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of service.json."""
    population: Population
    bins: Literal[20] = BINS
    bin_rule: Literal["clip(ceil(float32(p) * 20) - 1, 0, 19)"] = "clip(ceil(float32(p) * 20) - 1, 0, 19)"
    conventions: str = (
        "Foreground classes; DSC of the argmax mask; native voxel grid, whole image; macro figures leave a class out of "
        "a case whose reference lacks it, micro figures pool the voxels of all cases; empty bins are left out of ACE and "
        "MCE; intervals resample persons."
    )
    measurements: Annotated[list[Measurement], Field(min_length=1)]
    estimators: tuple[Estimator, ...] = ()
    risk_controls: tuple[RiskControl, ...] = ()
    shift_references: tuple[ShiftReference, ...] = ()
    locating: Locating | None = None
    """Null for a bundle without a locator. All measurements are of crops as an expert placed them."""

    def measurement(self, engine: Engine, precision: Precision) -> Measurement | None:
        """Return what was measured with this engine at this precision, or None."""
        return next((m for m in self.measurements if (m.engine, m.precision) == (engine, precision)), None)
