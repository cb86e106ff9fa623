"""The calibration card, `calibration.json` of a bundle: what was measured about it, on which population.

The sums per case are the only stored truth: every score can be computed from them again by
`service.calibration.cohort`. Version 1 is frozen as committed in `service/bundle/schemas`; a later minor version may
add fields. 1.1 adds the device of a measurement; a card without one stays 1.0, so that older programs read it.
"""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from service.bundle.acceptance import MARGIN, Acceptance, Words
from service.bundle.schema import Declaration
from service.calibration.cohort import BootstrapEstimate, CaseSums, class_scores, cohort_scores
from service.calibration.histogram import BINS, ReliabilityHistogram
from service.calibration.shift import Feature, Observation, ShiftTest

CPU: Final = "cpu"
"""The kind of device of every measurement that names none."""

Engine = Literal["torch", "openvino"]
Precision = Literal["fp32", "bf16", "fp16"]
DeviceKind = Annotated[str, Field(pattern=r"^[a-z]+(-[0-9]+\.[0-9]+)?$")]
"""Kind of device: cpu, or cuda with the compute capability, e.g. cuda-9.0."""


class Interval(Declaration):
    """A figure with its 95 % person-bootstrap percentile interval; null where undefined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: BootstrapEstimate) -> "Interval":
        """Convert an estimate; NaN becomes null."""
        value, low, high = (None if np.isnan(x) else x for x in (estimate.value, estimate.low, estimate.high))
        return cls(value=value, low=low, high=high)


class CaseRecord(Declaration):
    """Sums of one case over its voxels; rows of each matrix are structures, background first.

    The structures are those of `ServiceConfig.structures`: the bundle's regions if it declares any, otherwise its
    labels.
    """

    case: str
    person: str
    count: list[list[int]]
    """(C, M) voxels per confidence bin."""
    sum_p: list[list[float]]
    """(C, M) sum of the predicted probabilities."""
    sum_y: list[list[int]]
    """(C, M) voxels with the label."""
    brier: float
    """Brier score summed over voxels."""
    nll: float
    """Negative log likelihood summed over voxels, in nats."""
    intersection: list[int]
    """(C,) voxels where argmax mask and reference agree on the class."""
    predicted: list[int]
    """(C,) voxels of the class in the argmax mask."""
    ace_floor: list[float]
    """(C,) mean ACE of labels drawn from the predicted probabilities themselves, voxels independent."""
    shape: tuple[int, int, int]
    """Voxels along i, j, k in the scan's file."""
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
        """Return the sums as arrays for `service.calibration`."""
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
    """The scores of one engine at one precision on one kind of device, on the card's cases."""

    engine: Engine
    precision: Precision
    device: DeviceKind = Field(default=CPU, exclude_if=lambda device: device == CPU)
    platform: str
    """Processor, GPU, its float32 and library versions of the measuring machine."""
    cases: list[CaseRecord]
    scores: dict[str, Interval]
    """Foreground figures; keys as in `service.calibration.cohort.cohort_scores`."""
    class_scores: dict[str, dict[str, Interval]]
    """Figures by structure name; keys as in `service.calibration.cohort.class_scores`."""

    @classmethod
    def of(
        cls,
        engine: Engine,
        precision: Precision,
        platform: str,
        cases: list[CaseRecord],
        structures: list[str],
        device: str = CPU,
    ) -> "Measurement":
        """Return the measurement of these cases with its scores.

        Args:
            engine: that ran the network.
            precision: of the network's arithmetic.
            platform: processor and library versions.
            cases: the per-case sums.
            structures: names of the rows 1 .. C-1.
            device: kind of device that computed.
        """
        sums = [case.sums() for case in cases]
        return cls(
            engine=engine,
            precision=precision,
            device=device,
            platform=platform,
            cases=cases,
            scores={name: Interval.of(figure) for name, figure in cohort_scores(sums).items()},
            class_scores={
                structure: {name: Interval.of(figure) for name, figure in class_scores(sums, index).items()}
                for index, structure in enumerate(structures, start=1)
            },
        )


class Population(Declaration):
    """The population on which the bundle was measured."""

    dataset: str
    citation: str
    licence: str
    modality: str
    anatomy: str
    protocol: Literal["held-out", "out-of-fold"]
    """held-out: one model, tested on persons outside its training set. out-of-fold: each person is tested with the model
    that was not trained on them."""
    split: str
    """Part of the data set, in words."""
    split_unit: Literal["person"] = "person"
    n_persons: Annotated[int, Field(ge=1)]
    n_cases: Annotated[int, Field(ge=1)]


class Estimator(Declaration):
    """A fitted label-free estimator, e.g. of Dice or volume, with the data needed to refit and replay it."""

    name: str
    structure: str
    method: str
    coefficients: dict[str, float]
    alphas: list[float]
    """Miscoverage levels that are offered."""
    persons: list[str]
    residuals: list[float]
    """Conformity score of each case, in the order of `persons`, from which the conformal quantiles follow."""


class RiskControl(Declaration):
    """Loss curves from which a mask with controlled risk is derived for any alpha on the list."""

    name: str
    structure: str
    risk: str
    alphas: list[float]
    thresholds: list[float]
    persons: list[str]
    losses: list[list[float]]
    """(n, T) loss of each case, in the order of `persons`, at each threshold."""


class ShiftReference(Declaration):
    """Values of one feature over the card's cases, with which a new scan is compared."""

    feature: str
    unit: str
    values: list[float]


class ResolutionMeasurement(Declaration):
    """The scores on the card's cases at another voxel size, averaged or interpolated from their own."""

    spacing_mm: tuple[float, float, float]
    """Along the axes of the bundle's orientation."""
    scores: dict[str, Interval]
    """As in `Measurement`, on the native grid of the resampled cases."""


class ComparedFeature(Declaration):
    """A number that describes an answer, by the names of `service.pipeline.features`."""

    name: str
    unit: str
    log: bool = False
    """Whether it is compared by its logarithm."""


class ObservedAnswer(Declaration):
    """An answer about a known person, by a network that was not trained on that person."""

    case: str
    person: str
    fold: str
    artefacts: str
    """What was done to the scan, e.g. "noise 0.3"; empty if nothing."""
    dsc: float
    """Mean DSC over the structures."""
    values: list[float]
    """Of each feature, to four digits."""


class ShiftTestRecord(Declaration):
    """What the shift test compares an answer with (`service.calibration.shift`)."""

    region: Literal["whole", "located"] = "whole"
    """Whether the answers are about whole scans, or about parts that a locator found in larger ones."""
    features: list[ComparedFeature]
    answers: list[ObservedAnswer]

    def without(self, person: str) -> Self:
        """Return the record without the answers about a person, who is then new to the test."""
        return self.model_copy(update={"answers": [answer for answer in self.answers if answer.person != person]})

    def only(self, names: Collection[str]) -> Self:
        """Return the record with these features alone."""
        kept = [k for k, feature in enumerate(self.features) if feature.name in names]
        answers = [answer.model_copy(update={"values": [answer.values[k] for k in kept]}) for answer in self.answers]
        return self.model_copy(update={"features": [self.features[k] for k in kept], "answers": answers})

    def test(self) -> ShiftTest:
        """Return the test; it takes some milliseconds to fit.

        Raises:
            ValueError: too few persons or folds.
        """
        return ShiftTest(
            {feature.name: Feature(feature.unit, log=feature.log) for feature in self.features},
            [Observation(answer.person, answer.fold, tuple(answer.values)) for answer in self.answers],
        )


class Locating(Declaration):
    """Accuracy of the bundle's locator on synthetic scans of heads that it was not trained on.

    The scans are generated from label maps: there were no expert labels of whole heads, so locating in real scans is
    not validated. "Box" is the search box of a part.
    """

    heads: Annotated[int, Field(ge=1)]
    """Held-out label maps."""
    scans: Annotated[int, Field(ge=1)]
    """Scans generated from them, each with all parts whole in the field of view."""
    boxes_hold: int
    """Scans in which the box of every part holds at least 99 % of its structure."""
    distance_mm_median: float | None
    """Distance between the centre of a box and the middle of its structure; null if nothing was found."""
    distance_mm_p95: float | None
    empty_scans: int
    """Scans without the anatomy: shapes other than heads, and heads cut off above it."""
    found_in_empty: int
    """Number of the empty scans in which something was found."""
    seed: int
    validated_on_experts: Literal[False] = False


class CalibrationCard(Declaration):
    """The whole card."""

    schema_version: Literal["1.0", "1.1"] = "1.0"
    model: str
    model_version: str
    date: dt.date
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of models/model.safetensors."""
    config_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of service.json."""
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
    resolutions: Annotated[tuple[ResolutionMeasurement, ...], Field(exclude_if=lambda found: not found)] = ()
    """The reference engine on the CPU, at voxel sizes that people send."""
    shift_tests: Annotated[tuple[ShiftTestRecord, ...], Field(exclude_if=lambda tests: not tests)] = ()
    """At most one for each region."""
    acceptance: Annotated[Acceptance | None, Field(exclude_if=lambda acceptance: acceptance is None)] = None
    """Null in cards from before 1.1: `accepted` then follows from the population and the shift references."""
    locating: Locating | None = None
    """Null for a bundle without a locator. All measurements above are of crops placed by experts."""

    @property
    def accepted(self) -> Acceptance:
        """What is compared of a scan."""
        if self.acceptance is not None:
            return self.acceptance
        modality = Words(name="Modality", accepted=(self.population.modality.upper(),))
        sizes = {reference.feature: reference.values for reference in self.shift_references}
        return Acceptance(words=(modality,)).with_sizes(sizes)

    def with_acceptance(self, acceptance: Acceptance) -> Self:
        """Return the card, as of schema 1.1, with an acceptance; sizes without a limit get that of the card's cases."""
        sizes = {reference.feature: reference.values for reference in self.shift_references}
        return self.model_copy(update={"schema_version": "1.1", "acceptance": acceptance.with_sizes(sizes)})

    def resolution_near(self, spacing_mm: Sequence[float]) -> ResolutionMeasurement | None:
        """Return the figures at the voxel size nearest to a scan's; None if each differs by more than a factor of `MARGIN`.

        Args:
            spacing_mm: (3,) along the axes of the bundle's orientation.
        """
        near = min(self.resolutions, key=lambda known: _factor(known.spacing_mm, spacing_mm), default=None)
        return near if near and _factor(near.spacing_mm, spacing_mm) <= MARGIN else None

    def shift_test(self, region: Literal["whole", "located"]) -> ShiftTestRecord | None:
        """Return what answers of this region are compared with, None if there is nothing."""
        return next((test for test in self.shift_tests if test.region == region), None)

    @model_validator(mode="after")
    def _reject_shift_tests_before_version_1_1(self) -> Self:
        if self.schema_version == "1.0" and (self.shift_tests or self.resolutions or self.acceptance):
            msg = "a card of schema 1.0 has a shift test, resolutions or an acceptance: expected schema_version 1.1"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _reject_device_before_version_1_1(self) -> Self:
        if self.schema_version == "1.0" and any(measurement.device != CPU for measurement in self.measurements):
            msg = "a card of schema 1.0 names a device: expected schema_version 1.1"
            raise ValueError(msg)
        return self

    def measurement(self, engine: Engine, precision: Precision, device: str = CPU) -> Measurement | None:
        """Return the measurement of this engine at this precision on this kind of device, None if there is none."""
        key = (engine, precision, device)
        return next((m for m in self.measurements if (m.engine, m.precision, m.device) == key), None)


def _factor(spacing_mm: Sequence[float], other_mm: Sequence[float]) -> float:
    """Return the largest factor between two voxel sizes along an axis, at least 1."""
    return float(np.exp(np.abs(np.log(np.array(spacing_mm) / np.array(other_mm))).max()))
