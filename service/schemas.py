"""Wire types: what the API answers and the client reads. Also what `summary.json` and `result.json` hold on disk."""

import datetime as dt
from collections.abc import Callable
from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict

from .errors import CalibrantError, ServerProblem

RESEARCH_USE_ONLY: Final = "For research use only. Not a medical device; not for diagnosis or treatment."
"""Stands in every report until somebody certifies otherwise."""

Stage = Literal["decode", "locate", "preprocess", "infer", "calibrate", "encode", "store"]
Report = Callable[[Stage, float], None]
"""Receives the stage that runs and the fraction of it that is done."""

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

FINISHED: Final[tuple[State, ...]] = ("succeeded", "failed", "cancelled")
"""States that a job does not leave."""

Priority = Literal["urgent", "normal", "background"]
"""A job that waits goes before all of a lower priority; one that runs is never interrupted."""

Output = Literal["mask", "confidence", "summary", "probabilities"]
"""What a job keeps. Probabilities and uncertainty are computed from the logits, which are kept for probabilities only."""

ALL_OUTPUTS: Final[tuple[Output, ...]] = get_args(Output)

DicomObject = Literal["seg", "sr", "sc", "pm", "bands", "labelmap", "pdf"]
"""A result as DICOM: segmentation, structured report, picture of the summary; confidence as parametric map and as bands of a segmentation; label map; PDF."""

DEFAULT_OBJECTS: Final[tuple[DicomObject, ...]] = ("seg", "sr", "sc")
"""What is made unless others are asked for: the others are large, or not read everywhere."""


class Wire(BaseModel):
    """Base of the wire types."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Wire):
    """A figure of the card with its 95 % person-bootstrap interval."""

    value: float | None
    low: float | None
    high: float | None


class Statement(Wire):
    """What is known about how far the model can be trusted: a statement about a population, never about this image."""

    status: Literal["holds", "withdrawn"]
    """withdrawn: this scan is unlike those that the card was measured on, so the card says nothing about it."""
    text: str
    reasons: list[str]
    """Why it was withdrawn; empty when it holds."""
    basis: Literal["calibration card"] = "calibration card"
    dataset: str
    split: str
    protocol: str
    n_persons: int
    n_cases: int
    date: dt.date
    engine: str
    precision: str
    figures: dict[str, Figure] | None
    """Foreground DSC, ACE with its floor and excess, ECE, MCE, Brier and NLL on that population; null when withdrawn."""


class Structure(Wire):
    """One label of the mask."""

    label: int
    name: str
    voxels: int
    volume_ml: float | None
    """Null when the structure is truncated: part of it may lie outside the scan."""
    mean_confidence: float | None
    """Mean over the mask's voxels of the label; null when it has none."""
    p5_confidence: float | None = None
    """5th percentile of the same, interpolated linearly: one voxel in twenty is less sure."""
    truncated: bool = False
    """Whether the label touches one of the six outermost planes of the scan, so that it may go on outside."""
    confidence_histogram: list[int] | None = None
    """Voxels of the label per confidence bin: 20 bins ``k/20 < p <= (k+1)/20``, by the rule of the card."""


class ExpectedAccuracy(Wire):
    """The share of voxels that the model itself expects to be right around what it has found. No measurement.

    The mean of the largest probability over the mask's foreground and a margin. It is as good as the model's
    calibration on scans like this one, which the statement speaks about; where that is withdrawn, so is the trust in it.
    """

    value: float
    """In [1/C, 1]."""
    voxels: int
    """Of the region: the foreground and every voxel within the margin."""
    margin_voxels: int
    """Along each axis of the scan."""
    basis: Literal["the model's own probabilities"] = "the model's own probabilities"


class Located(Wire):
    """Where a part was found in a scan that shows more; nothing outside of its box was segmented."""

    name: str
    centre_mm: tuple[float, float, float] | None
    """Centre of the box in RAS millimetres; null when the part was not found."""
    size_mm: tuple[float, float, float]
    """Edges of the box along the axes of the head, which need not be those of the scan."""
    why_not: str | None
    """Why it was not found."""


class Summary(Wire):
    """The image-level summary of one segmentation."""

    model: str
    """name@sha256 of the bundle."""
    structures: list[Structure]
    foreground_confidence: float | None
    """Mean confidence over all foreground voxels of the mask; null when there are none."""
    expected_accuracy: ExpectedAccuracy | None = None
    """Null when the mask has no foreground."""
    located: list[Located] | None = None
    """Null when the whole of the scan was segmented as it came."""
    statement: Statement
    warnings: list[str]
    research_use_only: str = RESEARCH_USE_ONLY


class CaseResult(Wire):
    """How a case was computed and what was written; the last file to appear in a result."""

    model: str
    device: str
    placement: str = "device"
    """Whether the device's memory sufficed; else what was computed on the CPU."""
    engine: str
    precision: str
    seconds: dict[Stage, float]
    files: dict[str, str]
    """SHA-256 by file name."""
    weights_sha256: str | None = None
    """Of the model's weights."""
    card_sha256: str | None = None
    """Of its calibration card."""
    created: dt.datetime | None = None
    """When the result was complete: the date of what is made of it later."""


class Superseded(Wire):
    """The DICOM report of an earlier result in the same study, which a newer one replaces."""

    series_instance_uid: str
    sop_instance_uid: str


class StructureReliability(Wire):
    """How often a structure is there where the model gives it a probability; lists run over the M bins."""

    name: str
    count: list[int]
    """Voxels per confidence bin, all images pooled."""
    mean_p: list[float | None]
    """Mean predicted probability of each bin; null in an empty one."""
    frequency: list[float | None]
    """Observed frequency of each bin; null in an empty one."""
    images: list[list[int]]
    """(M, M): images per confidence bin (outer) and frequency bin (inner)."""
    ece: float | None
    ace: float | None
    mce: float | None


class Reliability(Wire):
    """What a reliability diagram shows, with the population that it was measured on."""

    source: str
    n_cases: int
    n_persons: int
    structures: list[StructureReliability]


class MeasuredStructure(Wire):
    """How well one structure of this image was found and how well calibrated it is; null where undefined.

    A structure that the reference lacks has no score at all.
    """

    name: str
    reference_voxels: int
    predicted_voxels: int
    dsc: float | None
    """Dice similarity coefficient of mask and reference; 0 when it was missed altogether."""
    hd95_mm: float | None
    """95 % Hausdorff distance of the two surfaces; null also when it was missed altogether."""
    ace: float | None
    ece: float | None
    mce: float | None


class Measured(Wire):
    """What a reference mask shows about one segmentation: measured on this image, and on nothing else."""

    basis: Literal["measured"] = "measured"
    model: str
    """name@sha256 of the bundle."""
    structures: list[MeasuredStructure]
    brier: float
    """Mean over voxels of ``sum_c (p_c - y_c)^2``, in [0, 2]: a proper score, which ACE, ECE and MCE are not."""
    nll: float
    """Mean negative log likelihood over voxels, in nats: proper, too."""
    reliability: Reliability
    """Reliability histogram of this image."""
    research_use_only: str = RESEARCH_USE_ONLY


class Problem(Wire):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str
    """Stable: `/problems/` and the code of the error."""
    title: str
    status: int
    detail: str
    """What was found, what was expected, what to do."""


def problem_of(error: CalibrantError) -> Problem:
    """Return the problem document of an error; a server's own one where a server sent it."""
    uri = error.problem_type if isinstance(error, ServerProblem) else f"/problems/{error.code}"
    return Problem(type=uri, title=error.title, status=error.status, detail=error.detail)


class Links(Wire):
    """Where to go on from a job."""

    self: str
    events: str | None = None
    cancel: str | None = None
    mask: str | None = None
    confidence: str | None = None
    summary: str | None = None
    probabilities: str | None = None
    uncertainty: str | None = None
    reference: str | None = None
    """Where a reference mask is posted to."""
    bundle: str | None = None
    """All files of the result in one zip."""


class Job(Wire):
    """A segmentation as a caller sees it."""

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
    """Jobs that will be done before it, while it is queued."""
    eta_s: float | None
    """Seconds until it will probably have finished; null when nothing was measured yet."""
    attempts: int
    """Times its computation was begun."""
    device: str | None
    """What computed it, once it has succeeded."""
    stage: Stage | None
    """What is being done, while it runs."""
    progress: float
    """Fraction of the stage, 0 to 1; 1 once it has succeeded."""
    seconds: dict[Stage, float]
    """Per stage, once it has succeeded."""
    problem: Problem | None
    """Why it failed."""
    links: Links


class Jobs(Wire):
    """A page of jobs, the newest first."""

    jobs: list[Job]
    next: str | None
    """Cursor of the next page; null on the last."""


class Scan(Wire):
    """A scan that was uploaded."""

    id: str
    """SHA-256 of the file: what `?scan=` of a segmentation names."""
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
    """Laterality and the like, coded the same way."""


class CardMeasurement(Wire):
    """What one engine at one precision scored on the card's cases."""

    engine: str
    precision: str
    platform: str
    scores: dict[str, Figure]
    """Over the foreground structures."""
    class_scores: dict[str, dict[str, Figure]]
    """The same by structure."""


class Card(Wire):
    """A model's calibration card without the sums of its cases."""

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
    card: Card | None = None
    """In the answer about one model; the list leaves it out."""
    reliability: str | None = None
    """Where its reliability diagram is."""


class Models(Wire):
    """Every installed bundle."""

    models: list[Model]
    default: str
