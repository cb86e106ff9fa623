"""What a bundle accepts: of a scan's own words (DICOM attributes, parts of a BIDS name) and of its sizes.

The declaration is part of the card. The gate, the pages about a model and its documentation all read it. A scan that says
itself that it shows something else is refused (or, if the caller insists, segmented without a statement); one whose sizes lie
outside is segmented without a statement. What a scan does not say is listed, and left to the voxels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, Self

from pydantic import FiniteFloat, model_validator

from service.bundle.schema import Declaration
from service.errors import ScanNotAccepted
from service.schemas import Accept
from service.volume import KEYWORDS, Stated

BIDS_PARTS: Final = ("suffix", "ce")
"""Parts of a BIDS name that can be compared: the suffix, e.g. T1w, and the entity of contrast enhancement."""

EXTENTS: Final = ("extent_mm_1", "extent_mm_2", "extent_mm_3")
"""The field of view along the axes of the bundle's orientation."""

VOXEL_SIZES: Final = ("spacing_mm_1", "spacing_mm_2", "spacing_mm_3")
"""The voxel size along them."""

SIZES: Final = (*EXTENTS, *VOXEL_SIZES)
"""Sizes that can be compared."""

MARGIN: Final = 1.25
"""A size may leave the range of the card's cases by this factor."""

_CODES: Final = ("Modality", "BodyPartExamined", "AcquisitionContrast", "ScanningSequence", "SequenceVariant", "suffix")
"""Values of a fixed vocabulary. Those of all others may be free text, which is not repeated in messages."""

_LONGEST_CODE: Final = 16


class Words(Declaration):
    """Accepted and refused values of one attribute; a scan that has another value is refused."""

    name: str
    """A DICOM keyword of `KEYWORDS`, or a part of a BIDS name of `BIDS_PARTS`."""
    accepted: tuple[str, ...] = ()
    """Patterns as of file names, in upper case, e.g. ``*HEAD*``; without any, every value that is not refused is accepted."""
    refused: tuple[str, ...] = ()
    """Patterns that are refused, even if an accepted one fits, too."""
    unsaid: tuple[str, ...] = ()
    """Values that say nothing, e.g. UNKNOWN."""

    @model_validator(mode="after")
    def _reject_unknown_name(self) -> Self:
        if self.name not in (*KEYWORDS, *BIDS_PARTS):
            msg = f"{self.name} cannot be compared: expected one of {', '.join((*KEYWORDS, *BIDS_PARTS))}"
            raise ValueError(msg)
        return self

    @property
    def description(self) -> str:
        """What is accepted, in words."""
        accepted = f"{_listed(self.accepted)} accepted" if self.accepted else ""
        refused = f"{_listed(self.refused)} refused" if self.refused else ""
        return f"{self.name}: {'; '.join(filter(None, [accepted, refused]))}"

    def judge(self, values: Sequence[str]) -> str | None:
        """Return why the values are refused, None if they are not; empty if they say nothing."""
        said = [value for value in (" ".join(value.upper().split()) for value in values) if value]
        said = [value for value in said if not _fits(value, self.unsaid)]
        for value in said:
            if pattern := _fits(value, self.refused):
                return f"{self.name} {self._shown(value, pattern)}, which is refused"
        # Of several values, e.g. of Image Type or of two body parts, one that is accepted is enough.
        if said and self.accepted and not any(_fits(value, self.accepted) for value in said):
            return f"{self.name} {self._shown(said[0], '')}; accepted: {_listed(self.accepted)}"
        return None if said else ""

    def _shown(self, value: str, pattern: str) -> str:
        if self.name in _CODES and len(value) <= _LONGEST_CODE and value.replace(" ", "").replace("_", "").isalnum():
            return f"is {value}"
        word = pattern.strip("*?")
        return f"contains {word}" if word else "has another value"


class Limit(Declaration):
    """The accepted range of one number."""

    name: str
    """A DICOM keyword of `KEYWORDS` with a numeric value, or a size of `SIZES`."""
    unit: str
    low: FiniteFloat
    high: FiniteFloat
    otherwise: Literal["refused", "withdrawn"] = "withdrawn"
    """What becomes of a scan outside: it is refused, or segmented with the statement withdrawn."""

    @model_validator(mode="after")
    def _reject_unknown_name(self) -> Self:
        if self.name not in (*KEYWORDS, *SIZES):
            msg = f"{self.name} cannot be compared: expected one of {', '.join((*KEYWORDS, *SIZES))}"
            raise ValueError(msg)
        if self.low > self.high:
            msg = f"the range of {self.name} is {self.low} to {self.high}: expected low below high"
            raise ValueError(msg)
        return self

    @property
    def description(self) -> str:
        """What is accepted, in words."""
        return f"{self.name}: {self.low:.4g} to {self.high:.4g} {self.unit}"

    def judge(self, value: float) -> str | None:
        """Return why a value is not accepted, None if it is."""
        if self.low <= value <= self.high:
            return None
        return (
            f"{_spelt(self.name)} is {value:.4g} {self.unit}; accepted: {self.low:.4g} to {self.high:.4g} {self.unit}"
        )


class Acceptance(Declaration):
    """Everything that is compared."""

    words: tuple[Words, ...] = ()
    limits: tuple[Limit, ...] = ()

    @property
    def descriptions(self) -> tuple[str, ...]:
        """What is accepted, one sentence for each attribute and size."""
        return (*(words.description for words in self.words), *(limit.description for limit in self.limits))

    def with_sizes(self, values: Mapping[str, Iterable[float]]) -> "Acceptance":
        """Return the acceptance with the range of the card's cases, widened by `MARGIN`, of sizes without a limit.

        Args:
            values: in mm, of the card's cases by name of the size.
        """
        declared = {limit.name for limit in self.limits}
        measured = tuple(
            Limit(name=name, unit="mm", low=min(sizes) / MARGIN, high=max(sizes) * MARGIN)
            for name, sizes in ((name, list(sizes)) for name, sizes in values.items())
            if name not in declared and sizes
        )
        return self.model_copy(update={"limits": (*self.limits, *measured)})


@dataclass(frozen=True, slots=True)
class Admission:
    """What a caller says about a scan.

    Args:
        name: parts of the file's BIDS name, as pairs, e.g. ("suffix", "T1w"); empty if it has no such name.
        accept: `stated`: a scan that the bundle does not accept is refused; `anyway`: it is segmented, without a statement.
    """

    name: tuple[tuple[str, str], ...] = ()
    accept: Accept = "stated"

    def with_stated(self, stated: Stated) -> Stated:
        """Return what the file itself says together with what its name says."""
        return {**stated, **{part: (value,) for part, value in self.name}}


AS_STATED: Final = Admission()
"""Of a caller who says nothing about the scan."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the comparison found.

    Args:
        refused: why the scan is refused.
        withdrawn: why the statement is withdrawn.
        not_compared: names of what the scan does not say.
    """

    refused: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the statement is withdrawn if the scan is segmented anyway."""
        return tuple(f"Not accepted: {reason}." for reason in self.refused) + tuple(
            f"{reason}." for reason in self.withdrawn
        )

    def reject(self, admission: Admission) -> None:
        """Refuse a scan that says itself that it is not what the bundle accepts, unless the caller insists.

        Raises:
            ScanNotAccepted: what was found, what is accepted, and how to go on.
        """
        if self.refused and admission.accept != "anyway":
            msg = (
                f"{'. '.join(self.refused)}. Send a scan that the model accepts. accept=anyway (on the command line "
                "--accept anyway) segments this one all the same; its result is then marked as withdrawn everywhere."
            )
            raise ScanNotAccepted(msg)


def judge_words(acceptance: Acceptance, stated: Stated) -> Judgement:
    """Compare what a scan says with what is accepted; its sizes need the voxels' grid (`judge_sizes`)."""
    refused: list[str] = []
    withdrawn: list[str] = []
    silent: list[str] = []
    for words in acceptance.words:
        verdict = words.judge(stated.get(words.name, ()))
        if verdict:
            refused.append(verdict)
        elif verdict == "":
            silent.append(words.name)
    for limit in (limit for limit in acceptance.limits if limit.name not in SIZES):
        numbers = [number for number in map(_number, stated.get(limit.name, ())) if number is not None]
        if not numbers:
            silent.append(limit.name)
        for reason in filter(None, map(limit.judge, numbers)):
            (refused if limit.otherwise == "refused" else withdrawn).append(reason)
    return Judgement(tuple(refused), tuple(withdrawn), tuple(silent))


def judge_sizes(acceptance: Acceptance, sizes: Mapping[str, float], judged: Sequence[str] = SIZES) -> tuple[str, ...]:
    """Return a reason for each size outside its range; NaN is.

    Args:
        acceptance: of the bundle.
        sizes: in mm, by the names of `SIZES`.
        judged: names of those that are looked at.
    """
    limits = (limit for limit in acceptance.limits if limit.name in judged)
    return tuple(f"{reason}." for reason in (limit.judge(sizes[limit.name]) for limit in limits) if reason)


def _spelt(name: str) -> str:
    """Return the name of a size in words; a DICOM keyword stays as it is.

    >>> _spelt("extent_mm_2")
    'extent along axis 2'
    """
    return name.replace("_mm_", " along axis ")


def _fits(value: str, patterns: Iterable[str]) -> str:
    """Return the first pattern that fits, empty if none does."""
    return next((pattern for pattern in patterns if fnmatchcase(value, pattern.upper())), "")


def _listed(patterns: Sequence[str]) -> str:
    """Return the words of patterns, each once; what stands around a word is left out."""
    return ", ".join(dict.fromkeys(pattern.strip("*? _") or "any value" for pattern in patterns))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
