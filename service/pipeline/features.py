"""Numbers that describe an answer and its image, by which the shift test compares it with those of the card's persons.

They are taken on the network's grid, so that they do not depend on the scan's voxel size, in a box around the foreground.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_erosion, gaussian_filter, label

from service.bundle.schema import ServiceConfig
from service.calibration.shift import Feature
from service.pipeline.predict import most_probable

MARGIN_VOXELS: Final = 24
"""The box reaches this far beyond the foreground along each axis."""

MOST_VOXELS: Final = 1 << 21
"""A larger box is thinned out: every second voxel along each axis, or every third."""

_RIM_VOXELS: Final = 2
"""The rim reaches this far beyond the foreground: there the errors lie."""

_DOUBTFUL: Final = 0.9
"""A voxel with a lower confidence is doubtful."""

_QUANTILES: Final = (5, 25, 50, 75, 95)
_SCALES: Final = (0.7, 1.5, 4.0)
"""Deviations in voxels of the Gaussians between which fine, middle and coarse detail lie."""

_LEAST: Final = 1e-6

_IMAGE_FEATURES: Final = {
    **{f"{q}th percentile of intensity": Feature("deviations") for q in _QUANTILES},
    "mean gradient": Feature("deviations per voxel", log=True),
    "sideways share of the gradient": Feature("", log=True),
    "second-axis share of the gradient": Feature("", log=True),
    "third-axis share of the gradient": Feature("", log=True),
    "fine detail": Feature("deviations", log=True),
    "fine over middle detail": Feature("", log=True),
    "coarse share of variance": Feature(""),
    "share of flat voxels": Feature(""),
    "sideways trend of intensity": Feature(""),
    "second-axis trend of intensity": Feature(""),
    "third-axis trend of intensity": Feature(""),
}

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Box:
    """What lies around the foreground, all (D, H, W).

    Args:
        image: first channel, normalised; exactly 0 where nothing is shown.
        classes: index of the most probable class.
        confidence: its probability.
        spacing_mm: (3,) between voxels.
    """

    image: Array
    classes: npt.NDArray[np.uint8]
    confidence: Array
    spacing_mm: npt.NDArray[np.float64]

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000


def features_of(config: ServiceConfig) -> dict[str, Feature]:
    """Return the features of a bundle's answers by name, in the order of `describe`."""
    return answer_features(config) | _IMAGE_FEATURES


def answer_features(config: ServiceConfig) -> dict[str, Feature]:
    """Return those features that describe the foreground and its rim, not everything in the box around it."""
    names = [label.name for label in config.labels[1:]]
    of_labels = {
        f"{feature} of {name}": Feature(unit, log=log)
        for name in names
        for feature, unit, log in (
            ("volume", "ml", True),
            ("number of pieces", "", True),
            ("share of the largest piece", "", False),
            ("surface over volume^(2/3)", "", True),
            ("mean confidence", "", False),
            ("5th percentile of confidence", "", False),
            ("mean intensity", "deviations", False),
            ("spread of intensity", "deviations", True),
        )
    }
    offsets = {
        f"{axis} offset from {one} to {other}": Feature("mm")
        for one, other in pairwise(names)
        for axis in ("sideways", "second-axis", "third-axis")
    }
    of_answer = {
        "intensity of the rim": Feature("deviations"),
        "mean confidence of foreground and rim": Feature(""),
        "doubtful share of foreground and rim": Feature(""),
        "doubtful share elsewhere": Feature("", log=True),
        "share of foreground at the edge of what is shown": Feature(""),
    }
    return of_labels | offsets | of_answer


def describe(image: torch.Tensor, logits: torch.Tensor, config: ServiceConfig) -> dict[str, float]:
    """Return the features of an answer, by the names of `features_of`.

    Left and right are not told apart: offsets and trends along the sideways axis are magnitudes.

    Args:
        image: (C, D, H, W) the network's input; the first channel is described.
        logits: (K, D, H, W) the network's output, on the same grid.
        config: holds labels, temperature, orientation and voxel size.
    """
    box = _box_of(image, logits, config)
    values = [
        *(value for k in range(1, len(config.labels)) for value in _of_label(box, k)),
        *(value for k in range(1, len(config.labels) - 1) for value in _offset(box, k, config)),
        *_of_answer(box),
        *_of_image(box, config),
    ]
    return dict(zip(features_of(config), values, strict=True))


def _box_of(image: torch.Tensor, logits: torch.Tensor, config: ServiceConfig) -> _Box:
    found = (logits[1:].amax(dim=0) > logits[0]).nonzero()
    shape = logits.shape[1:]
    begin = [0, 0, 0] if not len(found) else (found.amin(dim=0) - MARGIN_VOXELS).clamp_(min=0).tolist()
    end = list(shape) if not len(found) else (found.amax(dim=0) + MARGIN_VOXELS + 1).tolist()
    edges = [min(b, n) - a for a, b, n in zip(begin, end, shape, strict=True)]
    step = max(1, math.ceil((math.prod(edges) / MOST_VOXELS) ** (1 / 3)))
    inside = tuple(slice(a, b, step) for a, b in zip(begin, end, strict=True))
    temperature = torch.tensor(config.temperature, device=logits.device).view(-1, 1, 1, 1)
    d, h, w = inside
    p = (logits[:, d, h, w].float() / temperature).softmax(dim=0)
    classes, confidence = most_probable(p, range(len(p)))
    return _Box(
        image[0, d, h, w].float().cpu().numpy(),
        classes.cpu().numpy(),
        confidence.cpu().numpy(),
        np.array(config.spacing_mm) * step,
    )


def _of_label(box: _Box, k: int) -> list[float]:
    mask = box.classes == k
    voxels = int(np.count_nonzero(mask))
    if not voxels:
        return [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    pieces, number = label(mask)
    largest = int(np.bincount(pieces.ravel())[1:].max())
    volume_mm3 = 1000 * voxels * box.voxel_ml
    confidence, intensity = box.confidence[mask], box.image[mask]
    return [
        volume_mm3 / 1000,
        float(number),
        largest / voxels,
        _surface_mm2(mask, box.spacing_mm) / volume_mm3 ** (2 / 3),
        float(confidence.mean()),
        float(np.percentile(confidence, 5)),
        float(intensity.mean()),
        float(intensity.std()),
    ]


def _surface_mm2(mask: Mask, spacing_mm: npt.NDArray[np.float64]) -> float:
    """Return the area of the faces between the mask and what is outside."""
    padded = np.pad(mask, 1)
    area = 0.0
    for axis in range(3):
        faces = np.count_nonzero(np.diff(padded.view(np.int8), axis=axis))
        area += faces * float(np.prod(np.delete(spacing_mm, axis)))
    return area


def _offset(box: _Box, k: int, config: ServiceConfig) -> list[float]:
    """Return the vector from the centre of label k to that of the next in mm; zeros if one is absent."""
    centres = [np.argwhere(box.classes == one) for one in (k, k + 1)]
    if not all(len(found) for found in centres):
        return [0.0, 0.0, 0.0]
    offset = (centres[1].mean(axis=0) - centres[0].mean(axis=0)) * box.spacing_mm
    return _sideways_first(offset, config)


def _of_answer(box: _Box) -> list[float]:
    foreground = box.classes > 0
    wide = _widened(foreground)
    rim = wide & ~foreground
    doubtful = box.confidence < _DOUBTFUL
    return [
        float(box.image[rim].mean()) if rim.any() else 0.0,
        float(box.confidence[wide].mean()) if wide.any() else 0.0,
        float(doubtful[wide].mean()) if wide.any() else 1.0,
        float(doubtful[~wide].mean()) if not wide.all() else 0.0,
        _at_edge(foreground, box.image != 0),
    ]


def _at_edge(foreground: Mask, shown: Mask) -> float:
    """Return the share of the foreground that lies beside voxels that show nothing, or at the end of the image."""
    voxels = np.count_nonzero(foreground)
    inside = binary_erosion(shown, border_value=0)
    return float(np.count_nonzero(foreground & ~inside) / voxels) if voxels else 0.0


def _widened(mask: Mask) -> Mask:
    wide = mask
    for axis in range(3):
        length = mask.shape[axis]
        grown = wide.copy()
        for shift in range(1, min(_RIM_VOXELS, length - 1) + 1):
            ahead, behind = (np.moveaxis(wide, axis, 0)[s] for s in (slice(shift, None), slice(None, -shift)))
            np.moveaxis(grown, axis, 0)[:-shift] |= ahead
            np.moveaxis(grown, axis, 0)[shift:] |= behind
        wide = grown
    return wide


def _of_image(box: _Box, config: ServiceConfig) -> list[float]:
    shown = box.image != 0
    tissue = box.image[shown]
    if tissue.size < 2:  # noqa: PLR2004 - nothing to describe
        return [0.0] * (len(_QUANTILES) + 11)
    fine, middle, coarse = (gaussian_filter(box.image, sigma, mode="nearest") for sigma in _SCALES)
    slopes = [_slope(box.image, axis)[shown] for axis in range(3)]
    steepness = np.sqrt(np.square(slopes).sum(axis=0))
    mean_slopes = np.array([float(np.abs(slope).mean()) for slope in slopes])
    detail = float(np.abs(box.image - fine)[shown].mean())
    return [
        *(float(q) for q in np.percentile(tissue, _QUANTILES)),
        float(steepness.mean()),
        *_sideways_first(mean_slopes / max(float(mean_slopes.sum()), _LEAST), config),
        detail,
        detail / max(float(np.abs(fine - middle)[shown].mean()), _LEAST),
        float(coarse[shown].var() / max(float(tissue.var()), _LEAST)),
        float((steepness < _LEAST).mean()),
        *_sideways_first(_trend(box.image, shown), config),
    ]


def _slope(image: Array, axis: int) -> Array:
    """Return the derivative along an axis, per voxel; 0 along an axis of one voxel."""
    return np.asarray(np.gradient(image, axis=axis), np.float32) if image.shape[axis] > 1 else np.zeros_like(image)


def _trend(image: Array, shown: Mask) -> npt.NDArray[np.float64]:
    """Return the correlation of intensity with each voxel index."""
    values = image[shown].astype(np.float64)
    indices = np.nonzero(shown)
    deviation = values.std()
    if not deviation:
        return np.zeros(3)
    values -= values.mean()
    along = [index - index.mean() for index in indices]
    return np.array([float((values * a).mean() / (deviation * a.std())) if a.std() else 0.0 for a in along])


def _sideways_first(vector: npt.NDArray[np.float64], config: ServiceConfig) -> list[float]:
    """Return the magnitude along the right-left axis, then the components along the other two."""
    sideways = next(axis for axis, letter in enumerate(config.orientation) if letter in "RL")
    others = [float(vector[axis]) for axis in range(3) if axis != sideways]
    return [abs(float(vector[sideways])), *others]
