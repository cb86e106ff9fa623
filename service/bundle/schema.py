"""`service.json`: declares how a bundle is served. Nothing in it is ever evaluated as code.

Version 1 is frozen: a later minor version may add optional fields but never change the meaning of existing ones.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

SCHEMA_VERSION: Final = "1.0"
"""Version of `service.json` that this module reads and writes."""


class Declaration(BaseModel):
    """Base of everything read from a bundle: immutable, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(Declaration):
    """A network by its name on the allow-list of `service.bundle.network`, with its constructor arguments."""

    name: str
    arguments: dict[str, JsonValue]


class ZScore(Declaration):
    """Subtract the mean and divide by the standard deviation of the image, per channel."""

    step: Literal["zscore"] = "zscore"
    nonzero: bool = False
    """Whether mean and deviation are taken over the nonzero voxels only, and zeros stay 0."""


class RobustZScore(Declaration):
    """Clip to two percentiles of the tissue, subtract its mean, divide by its standard deviation, per channel.

    Tissue is every voxel that shows something (`service.pipeline.tissue`); all others become 0, the mean.
    """

    step: Literal["robust_zscore"] = "robust_zscore"
    low_percentile: Annotated[float, Field(ge=0, lt=50)] = 0.5
    high_percentile: Annotated[float, Field(gt=50, le=100)] = 99.5


class Window(Declaration):
    """Map [low, high], e.g. in HU, to [0, 1] and clip."""

    step: Literal["window"] = "window"
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _reject_empty_window(self) -> Self:
        if self.low >= self.high:
            msg = f"the window spans {self.low} to {self.high}: expected low below high"
            raise ValueError(msg)
        return self


Byte = Annotated[int, Field(ge=0, le=255)]
IntensityStep = Annotated[ZScore | RobustZScore | Window, Field(discriminator="step")]


class Code(Declaration):
    """A coded concept, e.g. of SNOMED CT: value, coding scheme designator (DICOM PS3.16 section 8) and meaning."""

    value: str
    scheme: str = "SCT"
    meaning: str


class Label(Declaration):
    """One class of the mask. Its position in the list is the network's output channel."""

    value: Byte
    """Voxel value in the mask; 0 is background."""
    name: str
    color: tuple[Byte, Byte, Byte]
    """Red, green and blue."""
    code: Code | None = None
    """Segmented property type, e.g. of SNOMED CT (PS3.3 C.8.20.4, (0062,000F))."""
    modifiers: list[Code] = []
    """Segmented property type modifiers such as laterality (PS3.3 C.8.20.4, (0062,0011))."""


class Region(Declaration):
    """A structure that joins several classes; its probability is the sum of theirs."""

    name: str
    labels: list[int]


@dataclass(frozen=True, slots=True)
class StructureChannels:
    """A scored structure: its name and the output channels whose probabilities are summed."""

    name: str
    channels: tuple[int, ...]


Millimetres = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class Landmark(Declaration):
    """A structure that the locator marks to find its way. Its position in the list, from 1, is its output channel."""

    name: str
    centre_mm: Millimetres
    """Centroid in the reference frame: RAS, with origin and axes of the mean of the training heads."""
    usual_ml: PositiveFloat
    """Mean volume in the training heads: gives the prior that the network's training with equal class weights lacks."""
    volume_ml: tuple[PositiveFloat, PositiveFloat]
    """Smallest and largest volume at which it counts as found."""


class Part(Declaration):
    """A box about a landmark that the network segments as if it were a whole scan."""

    name: str
    landmark: str
    """Name of the landmark at whose centroid the box is placed."""
    shift_mm: Millimetres = (0.0, 0.0, 0.0)
    """Offset from the centroid to the centre of the box, along the axes of the reference frame."""
    search_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Edges of the search box, in which the network segments first, along the same axes."""
    size_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Edges of the final box, centred on the structure found there: the field of view of the training crops."""
    labels: list[Label]
    """Labels of the network's structures in this part, in the order of the output channels 1 .. C-1."""


class Locator(Declaration):
    """Declares how the anatomy is found in a scan that shows more than the network was trained on.

    A small network (`models/locator.safetensors`) marks landmarks on a coarse grid. A similarity transform from their
    mean positions to the marked ones gives the position and axes of each part's box. If too few landmarks are found,
    or they do not lie as in the training heads, nothing is segmented.
    """

    anatomy: str
    """Name of the anatomy in error messages, e.g. hippocampus."""
    extent_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Extent of the training crops, R-L, A-P and I-S: a scan that is no longer is segmented whole, without locating."""
    network: Network
    spacing_mm: PositiveFloat
    """Voxel size of the coarse grid along all its axes, which are those of the patient (RAS)."""
    landmarks: list[Landmark]
    least_landmarks: Annotated[int, Field(ge=4)]
    residual_mm: PositiveFloat
    """Largest root mean square distance between the marked landmarks and their fitted positions."""
    scale: tuple[PositiveFloat, PositiveFloat]
    """Smallest and largest size of a head, relative to the mean of the training heads."""
    parts: Annotated[list[Part], Field(min_length=1)]

    @model_validator(mode="after")
    def _reject_unknown_landmarks(self) -> Self:
        names = [landmark.name for landmark in self.landmarks]
        if unknown := {part.landmark for part in self.parts} - set(names):
            msg = f"parts are centred in {sorted(unknown)}, which are not landmarks"
            raise ValueError(msg)
        return self


class ServiceConfig(Declaration):
    """Everything that serving needs besides the weights."""

    schema_version: Literal["1.0", "1.1"] = SCHEMA_VERSION
    """1.1 if it declares what 1.0 did not know: the step `robust_zscore`."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    version: str
    description: str
    modality: str
    """DICOM Modality (0008,0060) of the scans that it was trained on, e.g. MR."""
    anatomy: str
    """Anatomy that must be in the field of view, in words."""
    channels: list[str]
    """Names of the input channels, in order."""
    network: Network
    orientation: Annotated[str, Field(pattern=r"^[RLAPSI]{3}$")] = "RAS"
    """Direction in which i, j and k grow on the network's grid, e.g. RAS: to the right, anterior, superior."""
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    intensity: list[IntensityStep]
    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Fraction that neighbouring windows share along each axis."""
    activation: Literal["softmax"] = "softmax"
    labels: list[Label]
    regions: list[Region] = []
    temperature: list[Annotated[FiniteFloat, Field(gt=0)]]
    """Temperature of each class: its logits are divided by it before softmax; 1 leaves them unchanged."""
    locator: Locator | None = None
    """Finds the anatomy in a larger scan; null if every scan is segmented whole."""

    @property
    def every_label(self) -> list[Label]:
        """Labels of a scan that is segmented whole, then those of the parts that a locator finds."""
        return [
            *self.labels,
            *(label for part in (self.locator.parts if self.locator else []) for label in part.labels),
        ]

    @property
    def located(self) -> "ServiceConfig":
        """The configuration of a result of several parts: without a locator, with the background and all parts' labels.

        Raises:
            ValueError: there is no locator.
        """
        if self.locator is None:
            msg = f"{self.name} has no locator"
            raise ValueError(msg)
        parts = self.locator.parts
        values = [label.value for label in self.labels]
        regions = [
            Region(
                name=f"{part.name} {region.name}",
                labels=[part.labels[values.index(value) - 1].value for value in region.labels],
            )
            for part in parts
            for region in self.regions
        ]
        update = {
            "labels": [self.labels[0], *(label for part in parts for label in part.labels)],
            "temperature": [self.temperature[0], *self.temperature[1:] * len(parts)],
            "regions": regions,
            "locator": None,
        }
        return self.model_copy(update=update)

    @property
    def structures(self) -> tuple[StructureChannels, ...]:
        """The scored structures: the regions if there are any, otherwise each label but the background."""
        if not self.regions:
            return tuple(
                StructureChannels(label.name, (channel,)) for channel, label in enumerate(self.labels) if channel
            )
        channel_of = {label.value: channel for channel, label in enumerate(self.labels)}
        return tuple(
            StructureChannels(region.name, tuple(channel_of[value] for value in region.labels))
            for region in self.regions
        )

    @field_validator("orientation")
    @classmethod
    def _reject_axis_named_twice(cls, orientation: str) -> str:
        if not all(set(axis) & set(orientation) for axis in ("RL", "AP", "IS")):
            msg = f"orientation {orientation} does not name each of right-left, anterior-posterior, inferior-superior"
            raise ValueError(msg)
        return orientation

    @model_validator(mode="after")
    def _reject_steps_of_version_1_1(self) -> Self:
        if self.schema_version == "1.0" and any(isinstance(step, RobustZScore) for step in self.intensity):
            msg = "a configuration of schema 1.0 declares robust_zscore: expected schema_version 1.1"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _reject_ambiguous_values(self) -> Self:
        values = [label.value for label in self.labels]
        if len(self.labels) < 2 or values[0] != 0 or len(set(values)) != len(values):  # noqa: PLR2004 - background and one structure
            msg = (
                f"label values are {values}: expected background 0 first, then at least one structure, each value once"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _reject_other_than_one_temperature_per_label(self) -> Self:
        if len(self.temperature) != len(self.labels):
            msg = f"{len(self.temperature)} temperatures for {len(self.labels)} labels: expected one per label"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _reject_inconsistent_parts(self) -> Self:
        values = [label.value for label in self.labels]
        parts = self.locator.parts if self.locator else []
        if any(len(part.labels) != len(values) - 1 for part in parts):
            msg = f"a part has other than {len(values) - 1} labels: expected one for each structure of the network"
            raise ValueError(msg)
        sided = [label.value for part in parts for label in part.labels]
        if len({*values, *sided}) != len(values) + len(sided):
            msg = f"the parts' label values are {sided}, the scan's {values}: expected each value once"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _reject_regions_of_unknown_labels(self) -> Self:
        structures = {label.value for label in self.labels[1:]}
        if unknown := {value for region in self.regions for value in region.labels} - structures:
            msg = f"regions name the label values {sorted(unknown)}, which no structure has"
            raise ValueError(msg)
        return self
