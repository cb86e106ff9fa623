"""Wire types: what the API answers and the client reads, and the content of `summary.json` and `result.json`."""

import datetime as dt
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from .errors import CalibrantError, ServerProblem

RESEARCH_USE_ONLY: Final = "For research use only. Not a medical device; not for diagnosis or treatment."
"""Part of every report."""

WITHDRAWN: Final = "WITHDRAWN:"
"""Stands before every name of a withdrawn result that a viewer shows: series, segments, labels, banners."""

LINK_PREFIX: Final[ContextVar[str]] = ContextVar("LINK_PREFIX", default="")
"""What a reverse proxy puts before the path of every route, while a request is answered."""

Link = Annotated[str, PlainSerializer(lambda path: LINK_PREFIX.get() + path, return_type=str, when_used="json")]
"""Path of a route, which the answer carries with the prefix."""

Stage = Literal["decode", "locate", "preprocess", "infer", "calibrate", "encode", "store"]
Report = Callable[[Stage, float], None]
"""Called with the running stage and the fraction of it that is done."""

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

FINISHED: Final[tuple[State, ...]] = ("succeeded", "failed", "cancelled")
"""Final states of a job."""

Priority = Literal["urgent", "normal", "background"]
"""A waiting job goes before those of lower priority; a running one is never interrupted."""

Accept = Literal["stated", "anyway"]
"""Scans that are segmented: those that the model accepts, or any, with the statement withdrawn of those that it does not."""

StatementStatus = Literal["holds", "withdrawn", "not compared"]

Output = Literal["mask", "confidence", "summary", "probabilities"]
"""What a job keeps. Probabilities and uncertainty are computed from the logits, which `probabilities` keeps."""

ALL_OUTPUTS: Final[tuple[Output, ...]] = get_args(Output)

DicomObject = Literal["seg", "sr", "sc", "pm", "bands", "labelmap", "pdf"]
"""A result as DICOM: segmentation; structured report; secondary capture of the summary; confidence as a parametric map or as bands in a segmentation; label map; PDF."""

DEFAULT_OBJECTS: Final[tuple[DicomObject, ...]] = ("seg", "sr", "sc")
"""Objects that are made by default; the others are large, or many viewers cannot read them."""


class Wire(BaseModel):
    """Base of the wire types."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Wire):
    """A figure of the calibration card with its 95 % bootstrap interval over persons."""

    value: float | None
    low: float | None
    high: float | None


class OffFeature(Wire):
    """A number that describes the answer, or its image, and lies outside of what the card's persons show."""

    name: str
    unit: str
    value: float | None
    """Null if it is not a finite number."""
    low: float
    """Least value among the card's persons."""
    high: float


class Statement(Wire):
    """How far the model can be trusted: a statement about a population, never about this image."""

    status: StatementStatus
    """holds: the answer was compared with those about the card's persons, and is like them. withdrawn: the card does not
    apply. not compared: nothing speaks against it, but there is nothing to compare the answer with."""
    text: str
    reasons: list[str]
    """Why the statement is withdrawn, or was not compared; empty if it holds."""
    p: float | None = None
    """Share of the card's persons, and this one, whose answers are at least as unlike the others; null if not compared."""
    n_compared: int | None = None
    """Persons with whom the answer was compared."""
    features: list[OffFeature] = []
    """Where the answer lies outside their range, the farthest first."""
    not_compared: list[str] = []
    """What the scan does not say, e.g. its body part, and what could not be compared."""
    basis: Literal["calibration card"] = "calibration card"
    dataset: str
    split: str
    protocol: str
    n_persons: int
    """Of the card's population."""
    n_cases: int
    date: dt.date
    engine: str
    precision: str
    device: str = Field(default="cpu", exclude_if=lambda device: device == "cpu")
    """Kind of device that was measured, e.g. cuda-9.0 of the compute capability; left out if it is cpu."""
    figures: dict[str, Figure] | None
    """Foreground DSC, ACE with its floor and excess, ECE, MCE, Brier and NLL on that population; null when withdrawn."""


class Structure(Wire):
    """One label of the mask."""

    label: int
    name: str
    voxels: int
    volume_ml: float | None
    """Null if it is not known: the structure is truncated or was not found, or the scan holds two voxel sizes."""
    mean_confidence: float | None
    """Mean confidence over the label's voxels in the mask; null if there are none."""
    p5_confidence: float | None = None
    """5th percentile of the same, linearly interpolated: one voxel in twenty has a lower confidence."""
    truncated: bool = False
    """Whether the label reaches the border of what the scan shows, so that it may continue outside."""
    found: bool = True
    """False if the part of the anatomy that it belongs to was not found; then nothing is known of it."""
    confidence_histogram: list[int] | None = None
    """Voxels of the label per confidence bin: 20 bins ``k/20 < p <= (k+1)/20``, by the rule of the card."""
    withdrawn: bool = False
    """Whether the statement is withdrawn: then volume and confidence are those of an answer that is not to be trusted."""

    @property
    def volume_text(self) -> str:
        """The volume, or why there is none, for a table."""
        if self.volume_ml is not None:
            return f"{self.volume_ml:.2f} ml"
        return "cut off" if self.truncated else "withheld" if self.found else "not found"


class Located(Wire):
    """Where a part was found in a scan that shows more than the model segments; only its box was segmented."""

    name: str
    centre_mm: tuple[float, float, float] | None
    """Centre of the box in RAS millimetres; null if the part was not found."""
    size_mm: tuple[float, float, float]
    """Edges of the box along the axes of the head, which may differ from those of the scan."""
    why_not: str | None
    """Why the part was not found."""


class Summary(Wire):
    """The image-level summary of one segmentation."""

    model: str
    """name@sha256 of the bundle."""
    structures: list[Structure]
    foreground_confidence: float | None
    """Mean confidence over all foreground voxels of the mask; null if there are none."""
    located: list[Located] | None = None
    """Null if the whole scan was segmented."""
    statement: Statement
    warnings: list[str]
    research_use_only: str = RESEARCH_USE_ONLY

    @model_validator(mode="before")
    @classmethod
    def _without_expected_accuracy(cls, data: Any) -> Any:  # noqa: ANN401 - whatever is to be validated
        """Drop a figure of version 0.1, which predicted the accuracy no better than a constant."""
        return {name: data[name] for name in data if name != "expected_accuracy"} if isinstance(data, dict) else data


class CaseResult(Wire):
    """How a case was computed and which files were written; it is the last file of a result to be written."""

    model: str
    device: str
    placement: str = "device"
    """`device` if its memory was sufficient; otherwise what was computed on the CPU."""
    engine: str
    precision: str
    seconds: dict[Stage, float]
    files: dict[str, str]
    """SHA-256 by file name."""
    weights_sha256: str | None = None
    """SHA-256 of the model's weights."""
    card_sha256: str | None = None
    """SHA-256 of the model's calibration card."""
    created: dt.datetime | None = None
    """When the result was complete; also the date of files that are derived from it later."""


class Superseded(Wire):
    """The DICOM report of an earlier result, which a newer one in the same study replaces."""

    series_instance_uid: str
    sop_instance_uid: str


class StructureReliability(Wire):
    """How often a structure is present, by the probability that the model gives it; lists run over the M bins."""

    name: str
    count: list[int]
    """Voxels per confidence bin, all images pooled."""
    mean_p: list[float | None]
    """Mean predicted probability by bin; null for an empty bin."""
    frequency: list[float | None]
    """Observed frequency by bin; null for an empty bin."""
    images: list[list[int]]
    """(M, M): images per confidence bin (outer) and frequency bin (inner)."""
    ece: float | None
    ace: float | None
    mce: float | None


class Reliability(Wire):
    """The data of a reliability diagram, with the population that it was measured on."""

    source: str
    n_cases: int
    n_persons: int
    structures: list[StructureReliability]


class MeasuredStructure(Wire):
    """Overlap, distance and calibration of one structure in this image; null where undefined.

    A structure that the reference lacks has no score at all.
    """

    name: str
    reference_voxels: int
    predicted_voxels: int
    dsc: float | None
    """Dice similarity coefficient of mask and reference; 0 if the mask lacks the structure."""
    hd95_mm: float | None
    """95 % Hausdorff distance of the two surfaces; null if the mask lacks the structure."""
    ace: float | None
    ece: float | None
    mce: float | None


class Measured(Wire):
    """One segmentation measured against a reference mask of this image."""

    basis: Literal["measured"] = "measured"
    model: str
    """name@sha256 of the bundle."""
    statement: StatementStatus | None = None
    """Status of the result's statement; null if its summary was not kept."""
    structures: list[MeasuredStructure]
    brier: float
    """Mean over voxels of ``sum_c (p_c - y_c)^2``, in [0, 2]; a proper score, unlike ACE, ECE and MCE."""
    nll: float
    """Mean negative log likelihood over voxels, in nats; also a proper score."""
    reliability: Reliability
    """Reliability histogram of this image."""
    research_use_only: str = RESEARCH_USE_ONLY


class MeasuredCase(Wire):
    """One measured image of a site, and whose image it is."""

    person: Annotated[str, Field(min_length=1, max_length=200)]
    """Any text that is the same for all images of a person. Persons are resampled, not images."""
    measured: Measured


class SiteCases(Wire):
    """The measured images of a site."""

    cases: Annotated[list[MeasuredCase], Field(min_length=1, max_length=10_000)]


class SiteFigure(Wire):
    """A figure of a site beside the card's. All but the site's are null where the card measures other structures."""

    site: Figure
    card: Figure | None
    difference: Figure | None
    """Site minus card, with its 95 % interval."""
    p: float | None
    """Two-sided p-value: persons are exchanged between site and card at random."""
    differs: bool | None
    """Whether the difference is significant at 0.05 among all figures together (Holm's correction)."""


class SiteFigures(Wire):
    """What a site measured about a model, beside what the model's card states."""

    basis: Literal["measured"] = "measured"
    model: str
    """name@sha256 of the bundle."""
    n_cases: int
    n_persons: int
    statements: dict[str, int]
    """Number of cases by the status of their statement; `not kept` where the summary was not."""
    card_n_cases: int | None
    """Number of the card's cases; null where it measures other structures, as of whole scans whose parts are located."""
    card_n_persons: int | None
    figures: dict[str, SiteFigure]
    """By name: dsc, ace_macro, nll, brier, as the card defines them."""
    research_use_only: str = RESEARCH_USE_ONLY


class Problem(Wire):
    """A problem document: an error by RFC 9457."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str
    """Stable: `/problems/` and the code of the error."""
    title: str
    status: int
    detail: str
    """What was found, what was expected, what to do."""


def problem_of(error: CalibrantError) -> Problem:
    """Return the problem document of an error; a ServerProblem keeps the type that the server sent."""
    uri = error.problem_type if isinstance(error, ServerProblem) else f"/problems/{error.code}"
    return Problem(type=uri, title=error.title, status=error.status, detail=error.detail)


class Links(Wire):
    """Links from a job to its routes and results."""

    self: Link
    events: Link | None = None
    cancel: Link | None = None
    mask: Link | None = None
    confidence: Link | None = None
    summary: Link | None = None
    probabilities: Link | None = None
    uncertainty: Link | None = None
    reference: Link | None = None
    """Route that takes a reference mask by POST."""
    bundle: Link | None = None
    """All files of the result in one zip."""


class Job(Wire):
    """A segmentation job as its owner sees it."""

    id: str
    state: State
    model: str
    scan: str
    """SHA-256 of the file that was sent."""
    priority: Priority
    outputs: list[Output]
    created: dt.datetime
    finished: dt.datetime | None
    queue_position: int | None
    """Number of jobs that will run before it, while it is queued."""
    eta_s: float | None
    """Estimated seconds until it has finished; null before any job was timed."""
    attempts: int
    """How often its computation was begun."""
    device: str | None
    """Device that computed it, once it has succeeded."""
    stage: Stage | None
    """Present stage, while it runs."""
    progress: float
    """Fraction of the stage, 0 to 1; 1 once it has succeeded."""
    seconds: dict[Stage, float]
    """Seconds by stage, once it has succeeded."""
    problem: Problem | None
    """Why it failed or was cancelled."""
    links: Links


class Jobs(Wire):
    """A page of jobs, the newest first."""

    jobs: list[Job]
    next: str | None
    """Cursor of the next page; null on the last page."""


class Scan(Wire):
    """An uploaded scan."""

    id: str
    """SHA-256 of the file; the value of `?scan=` for a segmentation."""
    bytes: int


class LabelDetail(Wire):
    """One class of a model's masks."""

    value: int
    name: str
    color: tuple[int, int, int]
    """Red, green and blue."""
    code: str | None
    """Coded concept, ``scheme:value``, e.g. ``SCT:5366008`` of SNOMED CT."""
    modifiers: list[str]
    """Modifiers such as the laterality, coded the same way."""


class CardMeasurement(Wire):
    """Scores of one engine at one precision on one kind of device, on the card's cases."""

    engine: str
    precision: str
    device: str = "cpu"
    """cpu, or cuda with the compute capability, e.g. cuda-9.0."""
    platform: str
    scores: dict[str, Figure]
    """Means over the foreground structures."""
    class_scores: dict[str, dict[str, Figure]]
    """Scores by structure."""


class Card(Wire):
    """A model's calibration card without the sums over its cases."""

    date: dt.date
    dataset: str
    citation: str
    licence: str
    protocol: str
    split: str
    n_persons: int
    n_cases: int
    bins: int
    bin_rule: str
    conventions: str
    measurements: list[CardMeasurement]


class Model(Wire):
    """An installed bundle."""

    name: str
    ready: bool
    why_not: str | None
    identity: str | None = None
    version: str | None = None
    description: str | None = None
    modality: str | None = None
    anatomy: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    labels: dict[int, str] | None = None
    label_details: list[LabelDetail] | None = None
    statement: Statement | None = None
    accepts: list[str] | None = None
    """What is compared of a scan, with the accepted values, one sentence for each."""
    card: Card | None = None
    """Only in the answer about a single model."""
    reliability: Link | None = None
    """Route of its reliability diagram."""


class Models(Wire):
    """All installed bundles."""

    models: list[Model]
    default: str
