"""A DICOM dataset -> what the scan says about itself: modality, body part, sequence, contrast, times.

The values are compared with what a bundle accepts (`service.bundle.acceptance`). They may be free text that somebody typed,
so they are never logged. An enhanced multi-frame object keeps some of them in functional groups (PS3.3 C.7.6.16), or in
sequences of codes, whose meanings are taken.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from service.volume import KEYWORDS, Stated

MOST_VALUES: Final = 8
"""Values of one attribute that are kept; Image Type has four."""

MOST_CHARACTERS: Final = 64
"""Characters of a value that are kept: those of a Long String (PS3.5 6.2)."""

_ALSO: Final[Mapping[str, tuple[str, ...]]] = {
    "EchoTime": ("EffectiveEchoTime",),
    "InversionTime": ("InversionTimes",),
    "BodyPartExamined": ("AnatomicRegionSequence",),
    "ContrastBolusAgent": ("ContrastBolusAgentSequence",),
}
"""Other attributes with the same meaning, in milliseconds as well, or as coded concepts."""


def stated_of(dataset: Dataset) -> Stated:
    """Return the values of each attribute of `KEYWORDS` that a file states, as text.

    Args:
        dataset: of one file.
    """
    found = {name: tuple(_values(dataset, name)) for name in KEYWORDS}
    if "SharedFunctionalGroupsSequence" in dataset:
        groups = list(_groups(dataset))
        for name in (name for name in KEYWORDS if not found[name]):
            found[name] = tuple(value for group in groups for value in _values(group, name))[:MOST_VALUES]
    return {name: values for name, values in found.items() if values}


def stated_together(files: Iterable[Stated]) -> Stated:
    """Return every distinct value that the files of a series state.

    Args:
        files: what each of them states.
    """
    together: dict[str, dict[str, None]] = {}
    for stated in {id(stated): stated for stated in files}.values():
        for name, values in stated.items():
            together.setdefault(name, {}).update(dict.fromkeys(values))
    return {name: tuple(values)[:MOST_VALUES] for name, values in together.items()}


def _groups(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the items of the functional groups that all frames share, or of the first frame's own."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for groups in (dataset.get(name) or [])[:1]:
            for element in groups:
                if isinstance(element.value, Sequence) and element.value:
                    yield element.value[0]


def _values(dataset: Dataset, name: str) -> Iterator[str]:
    for keyword in (name, *_ALSO.get(name, ())):
        value = dataset.get(keyword)
        if value is None or value == "":
            continue
        if isinstance(value, Sequence):
            yield from (str(item.get("CodeMeaning") or "")[:MOST_CHARACTERS] for item in value[:MOST_VALUES])
        else:
            several = value if isinstance(value, MultiValue | list) else [value]
            yield from (str(one)[:MOST_CHARACTERS] for one in several[:MOST_VALUES])
        return
