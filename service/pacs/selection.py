"""Selection of series: what a PACS says about a series, criteria of a rule, and series that are never segmented."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt
from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

from service.errors import UnsuitableSeries

OURS: Final = "Calibrant"
"""Manufacturer (0008,0070) of all objects that this service makes."""

NEVER: Final = frozenset({"SEG", "SR", "PM", "OT", "DOC", "PR", "KO", "RTSTRUCT", "REG"})
"""Modalities (0008,0060) of results and documents; segmenting them could loop over the service's own results."""


@dataclass(frozen=True, slots=True)
class Series:
    """Attributes of a series from a PACS; empty if it does not give them.

    Args:
        study: Study Instance UID.
        uid: Series Instance UID.
        modality: Modality (0008,0060).
        description: Series Description (0008,103E).
        body_part: Body Part Examined (0018,0015).
        manufacturer: Manufacturer (0008,0070).
        instances: Number of Series Related Instances (0020,1209); None if unknown.
    """

    study: str
    uid: str
    modality: str = ""
    description: str = ""
    body_part: str = ""
    manufacturer: str = ""
    instances: int | None = None


def _reject_bad_pattern(pattern: str) -> str:
    try:
        _matcher(pattern)
    except SchemaError:
        msg = "not a regular expression without look-around and back references"
        raise ValueError(msg) from None
    return pattern


class Selection(BaseModel):
    """Criteria for a series; those left out match any series."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Annotated[str, Field(max_length=16)] | None = None
    description: Annotated[str, Field(max_length=200), AfterValidator(_reject_bad_pattern)] | None = None
    """Regular expression searched for in the Series Description, ignoring case."""
    body_part: Annotated[str, Field(max_length=16)] | None = None
    min_instances: PositiveInt | None = None
    max_instances: PositiveInt | None = None

    def fits(self, series: Series) -> bool:
        """Return whether a series matches; with an unknown number of instances it matches no range."""
        same = (self.modality or series.modality).upper() == series.modality.upper()
        same &= (self.body_part or series.body_part).upper() == series.body_part.upper()
        described = self.description is None or _found(self.description, series.description)
        return same and described and self._in_range(series.instances)

    def _in_range(self, count: int | None) -> bool:
        if self.min_instances is None and self.max_instances is None:
            return True
        return count is not None and (self.min_instances or 0) <= count <= (self.max_instances or count)


def reject_unsuitable(series: Series) -> None:
    """Refuse results, documents and everything that this service made, as a guard against loops.

    Raises:
        UnsuitableSeries: such a series.
    """
    if series.modality.upper() in NEVER or not series.modality:
        msg = "The series holds results or documents, no images. Ask for a series of CT, MR or PET images."
        raise UnsuitableSeries(msg)
    if series.manufacturer.strip().lower() == OURS.lower():
        msg = "The series was made by this service. Ask for the series that it was made from."
        raise UnsuitableSeries(msg)


def digest_of(instances: Iterable[str]) -> str:
    """Return the SHA-256 of the sorted SOP Instance UIDs of a series, which identifies its set of images."""
    return hashlib.sha256("\n".join(sorted(set(instances))).encode()).hexdigest()


@cache
def _matcher(pattern: str) -> SchemaValidator:
    # Rust's regular expressions take linear time for any pattern; Python's can take exponential time.
    return SchemaValidator(core_schema.str_schema(pattern=f"(?i:{pattern})", regex_engine="rust-regex"))


def _found(pattern: str, text: str) -> bool:
    try:
        _matcher(pattern).validate_python(text)
    except ValidationError:
        return False
    return True
