"""Outcome -> Parametric Map (PS3.3 A.75): the confidence of every voxel in 16 bits, uncompressed, all slices in order.

Viewers show frames in stored order and can read only uncompressed 16-bit maps. The order is highdicom's: descending
along the slices' normal, row direction x column direction.
"""

from typing import Final

import numpy as np
from highdicom.base import SOPClass
from highdicom.content import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.sr.codedict import codes

from service.result.dicom.codes import CONFIDENCE, SCHEME
from service.result.dicom.outcome import Outcome

_LARGEST: Final = np.iinfo(np.uint16).max


def make_parametric_map(outcome: Outcome) -> SOPClass:
    """Return the confidence as Parametric Map; stored values divided by 65535 are probabilities.

    Raises:
        ValueError: the confidence is not uint16.
    """
    if outcome.confidence_KRC.dtype != np.uint16:
        msg = f"the confidence has the type {outcome.confidence_KRC.dtype}: expected uint16"
        raise ValueError(msg)
    mapping = RealWorldValueMapping(
        lut_label="confidence",
        lut_explanation="Probability of the mask's label, 0 to 1",
        unit=codes.UCUM.NoUnits,
        value_range=(0, _LARGEST),
        slope=1 / _LARGEST,
        intercept=0.0,
        quantity_definition=CONFIDENCE,
    )
    made = ParametricMap(
        source_images=outcome.images,
        pixel_array=outcome.confidence_KRC,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=_LARGEST / 2, window_width=_LARGEST)],
        content_label="CONFIDENCE",
        content_description="Made by software, for research use only",
        coding_schemes=[SCHEME],
        **outcome.common("pm"),
    )
    return outcome.finish(made, "pm")
