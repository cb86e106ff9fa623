"""What the name of a file in a BIDS data set says about its image (bids-specification 1.10, "Common data types").

Only these parts leave the caller's machine: the rest of a name may name a person.
"""

import re
from typing import Final

SUFFIXES: Final = frozenset(
    (
        *("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "PDT2", "angio", "T2star", "FLASH", "PD"),
        *("VFA", "IRT1", "MP2RAGE", "MPM", "MTS", "MTR", "MEGRE", "MESE", "TB1EPI", "RB1COR", "UNIT1", "T1rho"),
        *("T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap", "MTsat", "MWFmap", "Chimap"),
        *("bold", "cbv", "phase", "sbref", "dwi", "asl", "m0scan", "epi", "fieldmap", "magnitude", "phasediff"),
        *("pet", "ct", "CT", "ADC", "FA"),
    )
)
"""Suffixes of images; another one may be anything, and says nothing."""

_NAME: Final = re.compile(
    r"sub-[A-Za-z0-9]+(?P<entities>(_[a-z0-9]+-[A-Za-z0-9+]+)*)_(?P<suffix>[A-Za-z0-9]+)(\.[A-Za-z0-9]+){1,2}"
)
_CONTRAST: Final = re.compile(r"_ce-(?P<agent>[A-Za-z0-9]+)")


def parts_of(name: str) -> dict[str, str]:
    """Return the suffix and the agent of contrast enhancement (`ce`) in a BIDS name; empty if it is none.

    >>> parts_of("sub-01_ses-2_ce-gadolinium_T1w.nii.gz")
    {'suffix': 'T1w', 'ce': 'gadolinium'}
    >>> parts_of("scan.nii.gz")
    {}
    """
    match = _NAME.fullmatch(name.replace("\\", "/").rpartition("/")[2])
    if match is None:
        return {}
    agent = _CONTRAST.search(match["entities"])
    parts = {"suffix": match["suffix"]} if match["suffix"] in SUFFIXES else {}
    return parts | ({"ce": agent["agent"]} if agent else {})
