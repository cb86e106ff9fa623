"""Measures a locator on scans drawn from held-out heads: do the boxes hold their structures, and are empty scans refused?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model_training.locator.heads import LANDMARKS, Head, Points
from model_training.locator.synthesis import Drawn, draw
from service.bundle.card import Locating
from service.bundle.schema import Locator
from service.errors import AnatomyNotFound
from service.pipeline.locate import Boxes
from service.volume import Volume

Locate = Callable[[Volume], Boxes]

CONTAINED: Final = 0.99
"""Share of a structure that a box must hold to count as good."""

ABOVE_MM: Final = 5.0
"""Distance above the highest structure at which the field of view of a cut-off head ends."""

_STEP_MM: Final = 2.0
_LEAST_PLANES: Final = 4


@dataclass(frozen=True, slots=True)
class LocatedScan:
    """Result of one scan that shows all structures; tuples are in the order of the locator's parts.

    Args:
        head: name of the label map.
        contained: share of each structure inside its box; 0 without a box.
        distance_mm: from each box's centre to the middle of its structure along the box's axes; NaN without a box.
    """

    head: str
    contained: tuple[float, ...]
    distance_mm: tuple[float, ...]


def evaluate_locator(locate: Locate, locator: Locator, heads: list[Head], *, n: int, seed: int) -> list[LocatedScan]:
    """Return the results of `n` scans that show all structures whole, each head as often as any other."""
    results = []
    for k in range(n):
        head = heads[k % len(heads)]
        drawn = draw([head], np.random.default_rng([seed, k]), whole=True)
        try:
            boxes = {box.part.name: box for box in locate(drawn.volume).found}
        except AnatomyNotFound:
            boxes = {}
        contained, distance = [], []
        for part in locator.parts:
            points = points_of(drawn, part.landmark)
            if part.name not in boxes:
                contained.append(0.0)
                distance.append(float("nan"))
                continue
            box = boxes[part.name]
            within = (points - box.centre_mm) @ box.axes
            contained.append(float((np.abs(within) <= np.array(part.search_mm) / 2).all(axis=1).mean()))
            distance.append(float(np.linalg.norm((within.min(axis=0) + within.max(axis=0)) / 2)))
        results.append(LocatedScan(head.name, tuple(contained), tuple(distance)))
    return results


def locating(locate: Locate, locator: Locator, heads: list[Head], *, n: int, seed: int) -> Locating:
    """Return the card's block on a locator, measured on `n` scans that show all structures and `n` that show none.

    Args:
        locate: scan -> boxes.
        locator: its declaration.
        heads: held-out heads.
        n: number of scans of each sort; even.
        seed: of all scans.
    """
    results = evaluate_locator(locate, locator, heads, n=n, seed=seed)
    distance = np.array([mm for result in results for mm in result.distance_mm if np.isfinite(mm)])
    return Locating(
        heads=len(heads),
        scans=n,
        boxes_hold=sum(min(result.contained) >= CONTAINED for result in results),
        distance_mm_median=round(float(np.median(distance)), 2) if distance.size else None,
        distance_mm_p95=round(float(np.percentile(distance, 95)), 2) if distance.size else None,
        empty_scans=n,
        found_in_empty=sum(found_in_nothing(locate, locator, heads, n=n // 2, seed=seed).values()),
        seed=seed,
    )


def found_in_nothing(locate: Locate, locator: Locator, heads: list[Head], *, n: int, seed: int) -> dict[str, int]:
    """Return in how many of `n` empty scans of each sort a box was found.

    The sorts are random shapes instead of a head, and heads whose field of view ends above the structures.
    """
    counts = {"no head": 0, "cut off above": 0}
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        scans = {"no head": draw([], rng).volume, "cut off above": _cut(draw(heads, rng, whole=True), locator)}
        for sort, scan in scans.items():
            try:
                counts[sort] += bool(locate(scan).found)
            except AnatomyNotFound:
                continue
    return counts


def points_of(drawn: Drawn, landmark: str) -> Points:
    """Return the (N, 3) points of a landmark in the scan, in RAS millimetres, 2 mm apart."""
    volume = drawn.volume
    edges = [np.arange(0, n - 1, _STEP_MM / mm) for n, mm in zip(volume.shape, volume.spacing_mm, strict=True)]
    index = np.array(np.meshgrid(*edges, indexing="ij")).reshape(3, -1)
    inside = drawn.landmarks_at(index) == 1 + list(LANDMARKS).index(landmark)
    return _millimetres(volume, index[:, inside])


def _cut(drawn: Drawn, locator: Locator) -> Volume:
    """Return the scan without the planes at and below its structures, along the axis closest to vertical."""
    volume = drawn.volume
    points = np.concatenate([points_of(drawn, part.landmark) for part in locator.parts])
    axis = int(np.abs(volume.affine[2, :3]).argmax())
    to_index = np.linalg.inv(volume.affine)
    planes = (points @ to_index[:3, :3].T + to_index[:3, 3])[:, axis]
    margin = ABOVE_MM / volume.spacing_mm[axis]
    n = volume.shape[axis]
    up = volume.affine[2, axis] > 0
    first = min(int(planes.max() + margin) + 1, n - _LEAST_PLANES) if up else 0
    last = n if up else max(int(planes.min() - margin), _LEAST_PLANES)
    cut = [slice(None)] * 3
    cut[axis] = slice(first, last)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, axis] * first
    return Volume(np.ascontiguousarray(volume.array_CDHW[(slice(None), *cut)]), affine, b"")


def _millimetres(volume: Volume, index: npt.NDArray[np.float64]) -> Points:
    points: Points = (volume.affine[:3, :3] @ index + volume.affine[:3, 3:]).T
    return points
