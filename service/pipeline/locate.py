"""Where the anatomy lies in a scan that shows more: landmarks on a coarse grid -> the place and axes of each part.

The network is trained on synthetic images (`model_training.locator`), so it does not depend on contrast. What it marks
is believed only where it lies as in a head: scale and residual of the fit are limited, and "not found" is an answer.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from nibabel.orientations import io_orientation
from torch import nn
from torch.nn.functional import grid_sample, interpolate

from service.bundle.schema import Locator, Part
from service.errors import AnatomyNotFound
from service.volume import Volume

Points = npt.NDArray[np.float64]

CELLS: Final = 1 << 21
"""Voxels that the coarse grid may have: a scan of 0.5 m edges at 4 mm. Beyond it the scan is searched more coarsely."""

LOOKS: Final = 3
"""Times that the network looks at most, each along the axes of the head that it saw before: a tilt is first underestimated."""

STEADY_DEGREES: Final = 4.0
"""When the head is turned by less than this from the axes along which the network looked, it has seen it upright."""

LEAST_INSIDE: Final = 0.9
"""Share of a part's box that must lie in the scan."""

_PERCENTILES: Final = (0.5, 99.5)

_SAMPLES: Final = 12
"""Points along each edge of a box by which it is told how much of it lies in the scan."""

_HALF: Final = 0.5
"""A voxel reaches half an index to each side of its centre."""


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """How the reference frame lies in the patient: ``x = scale * rotation @ reference + origin``, RAS millimetres.

    Args:
        scale: size of the head relative to the reference.
        rotation: (3, 3) proper.
        origin_mm: (3,) where the reference's origin lies.
        residual_mm: root mean square distance of the landmarks from their places.
    """

    scale: float
    rotation: Points
    origin_mm: Points
    residual_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """What the locator's network marked.

    Args:
        centre_mm: (L, 3) centroids in RAS millimetres; NaN for one that was not found.
        volume_ml: (L,) expected volumes: sums of probabilities.
    """

    centre_mm: Points
    volume_ml: npt.NDArray[np.float64]

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """(L,) which were found."""
        return ~np.isnan(self.centre_mm[:, 0])


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """The place of a part in the patient.

    Args:
        part: what is in it.
        centre_mm: (3,) RAS.
        axes: (3, 3) columns are the directions of the reference frame's axes in the patient.
    """

    part: Part
    centre_mm: Points
    axes: Points


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The boxes of the parts that are in the scan, and why the others have none, by name."""

    found: list[Box]
    absent: dict[str, str]


def shows_more(volume: Volume, locator: Locator) -> bool:
    """Return whether a scan is longer along any axis of the patient than the crops that are segmented as they come."""
    along = io_orientation(volume.affine)[:, 0].astype(int)
    extent_mm = np.array(volume.shape) * volume.spacing_mm
    return bool((extent_mm > np.array(locator.extent_mm)[along]).any())


def locate(network: nn.Module, volume: Volume, locator: Locator) -> Boxes:
    """Return the box of each part, in the order of `locator.parts`.

    Args:
        network: the locator's, in evaluation mode.
        volume: the scan; its first channel is searched.
        locator: landmarks, limits and parts.

    Raises:
        AnatomyNotFound: too few landmarks, they do not lie as in the training heads, or no part is in the scan.
    """
    axes = np.eye(3)
    small = averaged(volume, locator.spacing_mm)
    for _ in range(LOOKS):
        image, affine = along(*small, locator.spacing_mm, axes)
        landmarks = landmarks_of(network, image, affine, locator)
        pose = fit_pose(landmarks, locator)
        turned = degrees_between(axes, pose.rotation)
        axes = pose.rotation
        if turned < STEADY_DEGREES:
            break
    return boxes_of(volume, landmarks, pose, locator)


def degrees_between(one: Points, other: Points) -> float:
    """Return the angle of the turn that leads from one set of axes to another, (3, 3) each, in [0, 180] degrees."""
    cosine = (float(np.trace(one.T @ other)) - 1) / 2
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


def coarse(volume: Volume, spacing_mm: float, axes: Points | None = None) -> tuple[torch.Tensor, Points]:
    """Return the first channel on a coarse grid along the patient's axes, or others, and that grid's affine.

    Outside of the scan is its lowest intensity.

    Args:
        volume: the scan.
        spacing_mm: of the grid.
        axes: (3, 3) columns are the directions of the grid's axes in RAS; those of the patient by default.

    Returns:
        (1, 1, D, H, W) float32, and (4, 4) voxel index to RAS millimetres.
    """
    return along(*averaged(volume, spacing_mm), spacing_mm, np.eye(3) if axes is None else axes)


def averaged(volume: Volume, spacing_mm: float) -> tuple[torch.Tensor, Points]:
    """Return the first channel in voxels of about the coarse grid's size along the scan's own axes, and their affine.

    Voxels are averaged, so that nothing finer than the coarse grid is aliased. Intensities between the 0.5 and the 99.5
    percentile are mapped to [0, 1].
    """
    array = torch.from_numpy(np.ascontiguousarray(volume.array_CDHW[0], np.float32))[None, None]
    target = [max(round(n * mm / spacing_mm), 1) for n, mm in zip(volume.shape, volume.spacing_mm, strict=True)]
    shape = [min(n, t) for n, t in zip(volume.shape, target, strict=True)]
    small = interpolate(array, size=shape, mode="area")
    # Index i of the averaged image lies at (i + 0.5) n / m - 0.5 of the scan.
    ratio = np.array(volume.shape) / np.array(shape)
    return _scaled(small), volume.affine @ _affine(np.diag(ratio), (ratio - 1) / 2)


def along(small: torch.Tensor, affine: Points, spacing_mm: float, axes: Points) -> tuple[torch.Tensor, Points]:
    """Return an averaged image, by trilinear interpolation, on the coarse grid along some axes, and that grid's affine."""
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(small.shape[2:])[:, None] - 1)
    mm = axes.T @ (affine[:3, :3] @ corners + affine[:3, 3:])
    low, high = mm.min(axis=1), mm.max(axis=1)
    spacing_mm = max(spacing_mm, float(np.prod(high - low + spacing_mm) / CELLS) ** (1 / 3))
    size = np.floor((high - low) / spacing_mm).astype(int) + 1
    grid = _affine(axes * spacing_mm, axes @ (low + high - (size - 1) * spacing_mm) / 2)
    return resampled(small, np.linalg.inv(affine) @ grid, tuple(size)), grid


def resampled(
    image: torch.Tensor, to_index: Points, size: tuple[int, ...], outside: Literal["zeros", "border"] = "zeros"
) -> torch.Tensor:
    """Return an image at other places by trilinear interpolation.

    Args:
        image: (1, C, D, H, W).
        to_index: (4, 4) index of the new grid to index of the image.
        size: of the new grid.
        outside: what lies beyond the image.
    """
    n = np.array(image.shape[2:])
    index = np.indices(size).reshape(3, -1)
    at = to_index[:3, :3] @ index + to_index[:3, 3:]
    normalised = 2 * at / np.maximum(n - 1, 1)[:, None] - 1
    # A single plane is where index 0 lies; half a voxel to each side of it still shows it.
    normalised[n == 1] = 2 * at[n == 1] * (np.abs(at[n == 1]) > 0.5)  # noqa: PLR2004
    places = torch.from_numpy(normalised[::-1].T.reshape(*size, 3).astype(np.float32).copy())[None]
    return grid_sample(image, places, mode="bilinear", padding_mode=outside, align_corners=True)


@torch.inference_mode()
def landmarks_of(network: nn.Module, image: torch.Tensor, affine: Points, locator: Locator) -> Landmarks:
    """Return the landmarks that the network marks in an image of `coarse`.

    The network is trained as if all landmarks and the background were equally large, or it would not learn the small
    ones. Its logits become probabilities by each landmark's usual share of the image: without it the marks are several
    times too large, and their centroids off (Saerens et al., Neural Computation 14:21, 2002, equation 2.4).
    """
    device = next(network.parameters()).device
    logits = network(padded(image, multiple_of(locator)).to(device)).float()[0].cpu().double()
    logits = logits[(slice(None), *(slice(n) for n in image.shape[2:]))]
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    usual_ml = torch.tensor([landmark.usual_ml for landmark in locator.landmarks]).double()
    logits[1:] += (usual_ml / (math.prod(image.shape[2:]) * voxel_ml)).log().view(-1, 1, 1, 1)
    probs = logits.softmax(dim=0)
    index = torch.from_numpy(np.indices(tuple(image.shape[2:])).reshape(3, -1)).double()
    centres, volumes = [], []
    for channel, landmark in enumerate(locator.landmarks, start=1):
        p = probs[channel].reshape(-1)
        volume_ml = float(p.sum()) * voxel_ml
        low, high = landmark.volume_ml
        # A cube sharpens: what is faintly marked far away pulls the centroid no more.
        weight = p**3
        total = float(weight.sum())
        found = low <= volume_ml <= high and total > 0
        centre = (index @ weight / max(total, 1e-12)).numpy() if found else np.full(3, np.nan)
        centres.append(affine[:3, :3] @ centre + affine[:3, 3])
        volumes.append(volume_ml)
    return Landmarks(np.array(centres), np.array(volumes))


def multiple_of(locator: Locator) -> int:
    """Return what each edge of the network's input must be a multiple of: the product of its strides."""
    strides = locator.network.arguments.get("strides")
    return math.prod(s for s in strides if isinstance(s, int)) if isinstance(strides, list) else 1


def padded(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Return an image with zeros behind its end, so that each edge is a multiple of a number, two at least."""
    edges = [max(-(-n // multiple), 2) * multiple - n for n in image.shape[2:]]
    return torch.nn.functional.pad(image, [width for edge in reversed(edges) for width in (0, edge)])


def fit_pose(landmarks: Landmarks, locator: Locator) -> Pose:
    """Return the similarity transform that brings the landmarks' mean positions onto the ones found.

    Umeyama, IEEE TPAMI 13:376 (1991), equations 40 to 43; one after another the landmark that lies farthest off is left
    out until the rest agree or too few are left.

    Raises:
        AnatomyNotFound: too few landmarks, a head of no possible size, or landmarks that lie otherwise.
    """
    reference = np.array([landmark.centre_mm for landmark in locator.landmarks])
    used = landmarks.found.copy()
    while used.sum() >= locator.least_landmarks:
        pose, distance = _similarity(reference[used], landmarks.centre_mm[used])
        if pose.residual_mm <= locator.residual_mm:
            break
        used[np.flatnonzero(used)[distance.argmax()]] = False
    else:
        raise not_found(locator, f"{int(landmarks.found.sum())} of {len(used)} landmarks lie as they should")
    low, high = locator.scale
    if not low <= pose.scale <= high:
        raise not_found(locator, f"what looks alike has {pose.scale:.2f} times the usual size")
    return pose


def boxes_of(volume: Volume, landmarks: Landmarks, pose: Pose, locator: Locator) -> Boxes:
    """Return the box of each part whose landmark was marked: where it should lie as all landmarks together say.

    Args:
        volume: the scan, in which most of a box must lie.
        landmarks: that were marked.
        pose: that they agree on.
        locator: its parts.

    Raises:
        AnatomyNotFound: there is none.
    """
    names = [landmark.name for landmark in locator.landmarks]
    boxes = Boxes([], {})
    for part in locator.parts:
        index = names.index(part.landmark)
        if not landmarks.found[index]:
            boxes.absent[part.name] = f"{landmarks.volume_ml[index]:.1f} ml of it seem to be in the field of view"
            continue
        from_reference = np.array(locator.landmarks[index].centre_mm) + part.shift_mm
        box = Box(part, pose.scale * pose.rotation @ from_reference + pose.origin_mm, pose.rotation)
        inside = share_inside(volume, box)
        if inside < LEAST_INSIDE:
            boxes.absent[part.name] = f"{inside:.0%} of its box lies in the scan"
        else:
            boxes.found.append(box)
    if not boxes.found:
        raise not_found(locator, "; ".join(f"{name}: {why}" for name, why in boxes.absent.items()))
    return boxes


def share_inside(volume: Volume, box: Box) -> float:
    """Return the share, in [0, 1], of the box in which a part is looked for that lies in the scan."""
    unit = (np.indices((_SAMPLES,) * 3).reshape(3, -1) + 0.5) / _SAMPLES - 0.5
    mm = box.axes @ (unit * np.array(box.part.search_mm)[:, None]) + box.centre_mm[:, None]
    to_index = np.linalg.inv(volume.affine)
    index = to_index[:3, :3] @ mm + to_index[:3, 3:]
    n = np.array(volume.shape)[:, None]
    return float(((index >= -_HALF) & (index < n - _HALF)).all(axis=0).mean())


def not_found(locator: Locator, why: str) -> AnatomyNotFound:
    """Return the refusal of a scan in which the anatomy was not found."""
    msg = (
        f"No {locator.anatomy} found ({why}). Nothing was segmented. Send a scan that shows it whole, with the "
        "orientation right in its header, or a crop around it."
    )
    return AnatomyNotFound(msg)


def _scaled(image: torch.Tensor) -> torch.Tensor:
    # The percentiles of the averaged image, which is small; numpy's, because torch's refuse more than 2^24 values.
    low, high = np.percentile(image.numpy(), _PERCENTILES)
    return ((image - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1)


def _similarity(reference: Points, found: Points) -> tuple[Pose, npt.NDArray[np.float64]]:
    """Return the least-squares similarity transform and each point's distance from its place, in mm."""
    a, b = reference - reference.mean(axis=0), found - found.mean(axis=0)
    u, stretch, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = float((stretch * signs).sum() / (a**2).sum())
    origin = found.mean(axis=0) - scale * rotation @ reference.mean(axis=0)
    distance = np.linalg.norm(scale * reference @ rotation.T + origin - found, axis=1)
    return Pose(scale, rotation, origin, float(np.sqrt((distance**2).mean()))), distance


def _affine(linear: Points, offset: Points) -> Points:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, offset
    return affine
