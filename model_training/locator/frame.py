"""The reference frame of the landmarks: the mean of several heads and their mirror images."""

from typing import Final

import numpy as np

from model_training.locator.heads import LANDMARKS, OTHER_SIDE, Head, Points
from service.bundle.schema import Landmark

_ROUNDS: Final = 20

_LEAST, _MOST = 0.2, 4.0
"""A mark counts as a landmark from this share of its smallest volume in training up to this multiple of its largest."""


def reference(heads: list[Head]) -> list[Landmark]:
    """Return the landmarks in the reference frame.

    Generalised Procrustes analysis with rotation and scale (Gower, Psychometrika 40:33, 1975). Each head also enters as its
    mirror image, so the frame is symmetric: x = 0 is the midsagittal plane.
    """
    shapes = np.array([head.centres_mm for head in heads])
    mirrored = shapes[:, np.array(OTHER_SIDE[1:]) - 1] * (-1, 1, 1)
    mean = _mean_shape(np.concatenate([shapes, mirrored]))
    volumes = np.array([head.volumes_ml for head in heads])
    either_side = np.stack([volumes, volumes[:, np.array(OTHER_SIDE[1:]) - 1]])
    usual = either_side.mean(axis=(0, 1))
    low, high = either_side.min(axis=(0, 1)) * _LEAST, either_side.max(axis=(0, 1)) * _MOST
    return [
        Landmark(
            name=name,
            centre_mm=(round(float(x), 1), round(float(y), 1), round(float(z), 1)),
            usual_ml=round(float(mean_ml), 3),
            volume_ml=(round(float(a), 3), round(float(b), 3)),
        )
        for name, (x, y, z), mean_ml, a, b in zip(LANDMARKS, mean, usual, low, high, strict=True)
    ]


def shift_mm(heads: list[Head], landmark: str) -> tuple[float, float, float]:
    """Return the offset from a landmark's centroid to the middle of its bounding box, averaged with its mirror image's.

    A structure that is thick at one end has its centroid there: a box about the centroid would cut off the other end.

    Args:
        heads: heads whose axes are on average those of the reference frame.
        landmark: its name.
    """
    own = list(LANDMARKS).index(landmark)
    other = OTHER_SIDE[1 + own] - 1
    shifts = [head.middles_mm - head.centres_mm for head in heads]
    x, y, z = np.mean([(shift[own] + shift[other] * (-1, 1, 1)) / 2 for shift in shifts], axis=0).round(1).tolist()
    return x, y, z


def _mean_shape(shapes: Points) -> Points:
    """Return the (L, 3) mean of (N, L, 3) shapes, each rotated and scaled onto it; its axes are the mean RAS axes."""
    centred = shapes - shapes.mean(axis=1, keepdims=True)
    size = float(np.linalg.norm(centred, axis=(1, 2)).mean())
    mean = centred.mean(axis=0)
    for _ in range(_ROUNDS):
        aligned = np.array([_onto(shape, mean) for shape in centred])
        mean = aligned.mean(axis=0)
        mean *= size / np.linalg.norm(mean)
    return mean


def _onto(shape: Points, mean: Points) -> Points:
    u, _, vt = np.linalg.svd(mean.T @ shape)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotated: Points = shape @ (u @ np.diag(signs) @ vt).T
    return rotated * np.linalg.norm(mean) / np.linalg.norm(shape)
