"""Find the anatomy in a scan that shows more: landmarks on a coarse grid -> position and axes of each part.

The network is trained on synthetic images (`model_training.locator`), so it does not depend on contrast. Its landmarks
are accepted only where they lie as in a head: scale and residual of the fit are limited, and "not found" is an answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from nibabel.orientations import io_orientation
from torch import nn
from torch.nn.functional import interpolate

from service.bundle.schema import Locator, Part
from service.engines.machine import device_of
from service.errors import AnatomyNotFound
from service.pipeline.resample import resampled
from service.volume import Volume

Points = npt.NDArray[np.float64]

CELLS: Final = 3 << 19
"""Maximum number of voxels of the coarse grid with its padding, e.g. edges of 0.45 m at 4 mm. Larger scans are searched more
coarsely: a pass over so many takes about 3 s of a processor and 650 MiB."""

LOOKS: Final = 3
"""Maximum number of passes, each along the head's axes from the one before: the first pass underestimates a tilt."""

STEADY_DEGREES: Final = 4.0
"""A head turned by less than this against the grid of a pass counts as upright: no further pass is made."""

LEAST_INSIDE: Final = 0.9
"""Fraction of a part's box that must lie in the scan."""

_COARSER: Final = 1.02
"""Factor of the voxel size from one trial of a coarser grid to the next."""

_PERCENTILES: Final = (0.5, 99.5)

_SAMPLES: Final = 12
"""Sample points along each edge of a box, to estimate how much of it lies in the scan."""

_CPU: Final = torch.device("cpu")

_HALF: Final = 0.5
"""A voxel extends half an index to each side of its centre."""


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """How the reference frame lies in the patient: ``x = scale * rotation @ reference + origin``, RAS millimetres.

    Args:
        scale: size of the head relative to the reference.
        rotation: (3, 3) proper rotation.
        origin_mm: (3,) position of the reference's origin.
        residual_mm: root mean square distance of the landmarks from their fitted positions.
    """

    scale: float
    rotation: Points
    origin_mm: Points
    residual_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """The landmarks that the locator's network marked.

    Args:
        centre_mm: (L, 3) centroids in RAS millimetres; NaN for a landmark that was not found.
        volume_ml: (L,) expected volumes: sums of probabilities.
    """

    centre_mm: Points
    volume_ml: npt.NDArray[np.float64]

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """(L,) whether each was found."""
        return ~np.isnan(self.centre_mm[:, 0])


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """The search box of a part in the patient.

    Args:
        part: inside the box.
        centre_mm: (3,) RAS.
        axes: (3, 3) columns are the directions of the reference frame's axes in the patient.
    """

    part: Part
    centre_mm: Points
    axes: Points


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The boxes of the parts that are in the scan; for the others, by name, the reason why they have none."""

    found: list[Box]
    absent: dict[str, str]


def shows_more(volume: Volume, locator: Locator) -> bool:
    """Return whether a scan is longer along any axis of the patient than the crops that are segmented whole."""
    patient_axis = io_orientation(volume.affine)[:, 0].astype(int)
    extent_mm = np.array(volume.shape) * volume.spacing_mm
    return bool((extent_mm > np.array(locator.extent_mm)[patient_axis]).any())


def locate(network: nn.Module, volume: Volume, locator: Locator) -> Boxes:
    """Return the box of each part, in the order of `locator.parts`.

    Args:
        network: the locator's, in evaluation mode, on the device that computes.
        volume: the scan; its first channel is searched.
        locator: landmarks, limits and parts.

    Raises:
        AnatomyNotFound: too few landmarks, landmarks that do not lie as in the training heads, or no part in the scan.
    """
    axes = np.eye(3)
    small = averaged(volume, locator.spacing_mm, device_of(network))
    multiple = multiple_of(locator)
    for _ in range(LOOKS):
        image, affine = along(*small, locator.spacing_mm, axes, multiple)
        landmarks = landmarks_of(network, image, affine, locator)
        pose = fit_pose(landmarks, locator)
        turn = degrees_between(axes, pose.rotation)
        axes = pose.rotation
        if turn < STEADY_DEGREES:
            break
    return boxes_of(volume, landmarks, pose, locator)


def degrees_between(one: Points, other: Points) -> float:
    """Return the rotation angle between two sets of axes, (3, 3) each, in [0, 180] degrees."""
    cosine = (float(np.trace(one.T @ other)) - 1) / 2
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


def coarse(volume: Volume, spacing_mm: float, axes: Points | None = None) -> tuple[torch.Tensor, Points]:
    """Return the first channel on a coarse grid along the patient's or other axes, and that grid's affine.

    Outside the scan the grid has the scan's lowest intensity.

    Args:
        volume: the scan.
        spacing_mm: of the grid.
        axes: (3, 3) columns are the directions of the grid's axes in RAS; the patient's axes by default.

    Returns:
        (1, 1, D, H, W) float32, and (4, 4) voxel index to RAS millimetres.
    """
    return along(*averaged(volume, spacing_mm), spacing_mm, np.eye(3) if axes is None else axes)


def averaged(volume: Volume, spacing_mm: float, device: torch.device = _CPU) -> tuple[torch.Tensor, Points]:
    """Average the first channel to about the coarse grid's voxel size along the scan's own axes; return it and its affine.

    Averaging keeps details finer than the coarse grid from aliasing. Intensities between the 0.5 and the 99.5
    percentile are mapped to [0, 1].

    Args:
        volume: the scan.
        spacing_mm: of the coarse grid.
        device: that averages, and holds the averaged image.
    """
    array = _first_channel(volume, device)[None, None]
    target = [max(round(n * mm / spacing_mm), 1) for n, mm in zip(volume.shape, volume.spacing_mm, strict=True)]
    shape = [min(n, t) for n, t in zip(volume.shape, target, strict=True)]
    small = interpolate(array, size=shape, mode="area")
    # Index i of the averaged image lies at index (i + 0.5) n / m - 0.5 of the scan.
    ratio = np.array(volume.shape) / np.array(shape)
    return _scaled(small), volume.affine @ _affine(np.diag(ratio), (ratio - 1) / 2)


def along(
    small: torch.Tensor, affine: Points, spacing_mm: float, axes: Points, multiple: int = 1
) -> tuple[torch.Tensor, Points]:
    """Resample an averaged image to the coarse grid along the given axes; return it and that grid's affine.

    Args:
        small: (1, 1, D, H, W) from `averaged`.
        affine: (4, 4) of `small`.
        spacing_mm: of the grid; larger where it would have more than `CELLS` voxels.
        axes: (3, 3) columns are the directions of the grid's axes in RAS.
        multiple: to which the network pads each edge, as by `padded`: padding counts, or a thin scan would cost a
            thousand times its voxels.
    """
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(small.shape[2:])[:, None] - 1)
    mm = axes.T @ (affine[:3, :3] @ corners + affine[:3, 3:])
    low, high = mm.min(axis=1), mm.max(axis=1)
    spacing_mm = max(spacing_mm, float(np.prod(high - low + spacing_mm) / CELLS) ** (1 / 3))
    size = _size(high - low, spacing_mm)
    while math.prod(_padded_size(size, multiple)) > CELLS and max(size) > 1:
        spacing_mm *= _COARSER
        size = _size(high - low, spacing_mm)
    grid = _affine(axes * spacing_mm, axes @ (low + high - (np.array(size) - 1) * spacing_mm) / 2)
    return resampled(small, np.linalg.inv(affine) @ grid, size), grid


def _size(extent_mm: Points, spacing_mm: float) -> tuple[int, ...]:
    return tuple(int(n) + 1 for n in np.floor(extent_mm / spacing_mm))


@torch.inference_mode()
def landmarks_of(network: nn.Module, image: torch.Tensor, affine: Points, locator: Locator) -> Landmarks:
    """Return the landmarks that the network marks in an image of `coarse`.

    The network is trained with equal class weights, or it would not learn the small landmarks. Its logits are corrected
    by each landmark's usual fraction of the image: without that the marks are several times too large and their
    centroids off (Saerens et al., Neural Computation 14:21, 2002, equation 2.4).

    Args:
        network: the locator's, in evaluation mode.
        image: (1, 1, D, H, W).
        affine: (4, 4) of the image.
        locator: usual and acceptable volume of each landmark.
    """
    device = device_of(network)
    logits = network(padded(image, multiple_of(locator)).to(device)).float()[0].double()
    logits = logits[(slice(None), *(slice(n) for n in image.shape[2:]))]
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    usual_ml = torch.tensor([landmark.usual_ml for landmark in locator.landmarks]).double()
    prior = (usual_ml / (math.prod(image.shape[2:]) * voxel_ml)).log()
    logits[1:] += prior.to(device, non_blocking=True).view(-1, 1, 1, 1)
    probs = logits.softmax(dim=0)
    index = torch.from_numpy(np.indices(tuple(image.shape[2:])).reshape(3, -1)).double().to(device, non_blocking=True)

    def sums(p: torch.Tensor) -> torch.Tensor:
        # The cube suppresses faint marks far away, which would pull the centroid.
        weight = p**3
        return torch.stack([p.sum(), weight.sum(), *(index @ weight)])

    # All sums come back in one copy.
    of_all = torch.stack([sums(p) for p in probs[1:].flatten(1)]).cpu().numpy()
    centres, volumes = [], []
    for (sum_p, total, *weighted), landmark in zip(of_all, locator.landmarks, strict=True):
        volume_ml = float(sum_p) * voxel_ml
        low, high = landmark.volume_ml
        found = low <= volume_ml <= high and total > 0
        centre = np.array(weighted) / max(float(total), 1e-12) if found else np.full(3, np.nan)
        centres.append(affine[:3, :3] @ centre + affine[:3, 3])
        volumes.append(volume_ml)
    return Landmarks(np.array(centres), np.array(volumes))


def multiple_of(locator: Locator) -> int:
    """Return the product of the network's strides: each edge of its input must be a multiple of it."""
    strides = locator.network.arguments.get("strides")
    return math.prod(s for s in strides if isinstance(s, int)) if isinstance(strides, list) else 1


def padded(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad an image with zeros at the end of each axis to a multiple of a number, and at least twice that number."""
    edges = [whole - n for n, whole in zip(image.shape[2:], _padded_size(image.shape[2:], multiple), strict=True)]
    return torch.nn.functional.pad(image, [width for edge in reversed(edges) for width in (0, edge)])


def _padded_size(size: Sequence[int], multiple: int) -> list[int]:
    """Return the edges of an image after `padded`."""
    return [max(-(-n // multiple), 2) * multiple for n in size]


def fit_pose(landmarks: Landmarks, locator: Locator) -> Pose:
    """Return the similarity transform from the landmarks' mean positions to the marked ones.

    Umeyama, IEEE TPAMI 13:376 (1991), equations 40 to 43. The landmark farthest off is dropped, one after another,
    until the rest agree or too few are left.

    Raises:
        AnatomyNotFound: too few landmarks that agree, or a head of impossible size.
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
        raise not_found(locator, f"the best match has {pose.scale:.2f} times the usual size")
    return pose


def boxes_of(volume: Volume, landmarks: Landmarks, pose: Pose, locator: Locator) -> Boxes:
    """Return the box of each part whose landmark was marked, at the position that all landmarks together imply.

    Args:
        volume: the scan, in which most of a box must lie.
        landmarks: that were marked.
        pose: fitted to them.
        locator: declares the parts.

    Raises:
        AnatomyNotFound: no part has a box.
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
    """Return the fraction, in [0, 1], of a part's search box that lies in the scan."""
    unit = (np.indices((_SAMPLES,) * 3).reshape(3, -1) + 0.5) / _SAMPLES - 0.5
    mm = box.axes @ (unit * np.array(box.part.search_mm)[:, None]) + box.centre_mm[:, None]
    to_index = np.linalg.inv(volume.affine)
    index = to_index[:3, :3] @ mm + to_index[:3, 3:]
    n = np.array(volume.shape)[:, None]
    return float(((index >= -_HALF) & (index < n - _HALF)).all(axis=0).mean())


def not_found(locator: Locator, why: str) -> AnatomyNotFound:
    """Return the error for a scan in which the anatomy was not found."""
    msg = (
        f"No {locator.anatomy} found ({why}). Nothing was segmented. Send a scan that shows it whole, with the "
        "orientation right in its header, or a crop around it."
    )
    return AnatomyNotFound(msg)


def _first_channel(volume: Volume, device: torch.device) -> torch.Tensor:
    """Return the first channel of a scan, (D, H, W) float32."""
    array = volume.array_CDHW[0]
    if device.type == "cpu":
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))
    # Copied as it lies in memory, and reordered on the device.
    in_memory = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    copied = torch.from_numpy(np.array(array.transpose(in_memory), np.float32, order="C")).to(device)
    return copied.permute(*np.argsort(in_memory).tolist())


def _scaled(image: torch.Tensor) -> torch.Tensor:
    # numpy's percentiles: torch's quantile refuses more than 2^24 values.
    low, high = np.percentile(image.cpu().numpy(), _PERCENTILES)
    return ((image - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1)


def _similarity(reference: Points, marked: Points) -> tuple[Pose, npt.NDArray[np.float64]]:
    """Return the least-squares similarity transform and each point's distance from its fitted position, in mm."""
    a, b = reference - reference.mean(axis=0), marked - marked.mean(axis=0)
    u, stretch, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = float((stretch * signs).sum() / (a**2).sum())
    origin = marked.mean(axis=0) - scale * rotation @ reference.mean(axis=0)
    distance = np.linalg.norm(scale * reference @ rotation.T + origin - marked, axis=1)
    return Pose(scale, rotation, origin, float(np.sqrt((distance**2).mean()))), distance


def _affine(linear: Points, offset: Points) -> Points:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, offset
    return affine
