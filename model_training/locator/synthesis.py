"""Draws synthetic T1-weighted scans from label maps: any pose, resolution and field of view, with known landmarks.

After SynthSeg (Billot et al., Medical Image Analysis 86:102789, 2023; arXiv 2107.09559): each tissue draws its own
intensities. SynthSeg draws arbitrary contrasts; here the tissues of the brain keep their order in a T1-weighted scan,
because the networks behind a locator know only such scans, and because fewer steps are needed. In addition to SynthSeg's
variations there are fields of view that cut the head off, heads without skull, oblique stacks, and scans without a head.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import avg_pool3d, interpolate

from model_training.locator.heads import OTHER_SIDE, SCALP, Head, Points
from service.pipeline.locate import coarse
from service.volume import Volume

FINE_MM: Final = 2.0
"""Voxel size at which a scan is drawn, before slices are averaged."""

EXTENT_MM: Final = (208.0, 240.0, 224.0)
"""Largest field of view."""

NEGATIVES: Final = 0.12
"""Share of the scans without a head."""

WHOLE: Final = 0.5
"""Share of the scans whose field of view is made to contain the whole head."""

_HALF: Final = 0.5
"""A voxel reaches half an index to each side of its centre."""

_GREY: Final = (3, 8, 11, 12, 17, 18, 26)
_DEEP: Final = (10, 13, 16, 28)
_WHITE: Final = (2, 7, 85)
_FLUID: Final = (4, 5, 14, 15, 24, 31, 30)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A drawn scan and its ground truth.

    Args:
        volume: float32 intensities in arbitrary units; oblique.
        head: the head that was drawn; None without a head.
        to_head: (4, 4) RAS millimetres of the scan to those of the head.
        warp: (3, d, h, w) displacement of the head, in voxels of its map, on a grid over the field of view.
        to_warp: (4, 4) RAS millimetres of the scan to coordinates of that grid, -1 to 1 along each axis.
        mirrored: whether left and right of the head are exchanged.
    """

    volume: Volume
    head: Head | None
    to_head: Points
    warp: torch.Tensor
    to_warp: Points
    mirrored: bool

    def landmarks_at(self, index: Points) -> npt.NDArray[np.uint8]:
        """Return the landmark's channel at (3, N) voxel indices of the scan; 0 outside its field of view."""
        channel = _at(self, index)[1]
        if self.mirrored:
            channel = np.array(OTHER_SIDE, np.uint8)[channel]
        n = np.array(self.volume.shape)[:, None]
        inside = ((index >= -_HALF) & (index <= n - _HALF)).all(axis=0)
        return np.where(inside, channel, 0).astype(np.uint8)


def draw(heads: list[Head], rng: np.random.Generator, *, whole: bool = False) -> Drawn:
    """Return a scan of one of the heads, or one without a head.

    Args:
        heads: label maps; if empty, the scan has no head.
        rng: the draw follows from its state alone.
        whole: draw a head, and show all of it.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    empty = not heads or (not whole and rng.random() < NEGATIVES)
    head = None if empty else heads[int(rng.integers(len(heads)))]
    whole = whole or rng.random() < WHOLE
    size = np.array(EXTENT_MM) if whole else np.array(EXTENT_MM) * rng.uniform(0.4, 1, 3) ** 0.7
    fine = tuple(int(n) for n in np.maximum(np.round(size / FINE_MM), 16))
    axes = random_rotation(rng, 12)
    affine = np.eye(4)
    affine[:3, :3] = axes * FINE_MM
    affine[:3, 3] = rng.uniform(-60, 60, 3) - affine[:3, :3] @ ((np.array(fine) - 1) / 2)
    warp = interpolate(
        torch.randn((1, 3, 5, 5, 5), generator=generator) * float(rng.uniform(0, 4)),
        size=(20, 20, 20),
        mode="trilinear",
    )[0]
    scan = Volume(np.zeros((1, *fine), np.float32), affine, b"")
    mirrored = bool(rng.random() < 0.5)  # noqa: PLR2004
    to_head = np.eye(4) if head is None else _pose(head, scan, rng, whole=whole, mirrored=mirrored)
    to_unit = np.diag([*(2 / (np.array(fine) - 1)), 1.0])
    to_unit[:3, 3] = -1
    to_warp = to_unit @ np.linalg.inv(affine)
    drawn = Drawn(scan, head, to_head, warp, to_warp, mirrored)
    if head is None:
        tissue, values = _shapes(fine, rng, generator)
    else:
        tissue, values = _at(drawn, np.indices(fine).reshape(3, -1).astype(np.float64))[0], head.values
    image = _intensities(tissue, values, rng, generator).reshape(fine)
    image = _bias(image, rng, generator)
    volume = _sliced(image, affine, rng, generator)
    return Drawn(volume, head, to_head, warp, to_warp, mirrored)


def training_pair(drawn: Drawn, channels: int, spacing_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coarse image, made as in the service, and the share of each landmark in each of its voxels.

    Returns:
        (1, 1, D, H, W) and (1, channels, D, H, W), both float32.
    """
    image, grid = coarse(drawn.volume, spacing_mm)
    shape = np.array(image.shape[2:])
    if drawn.head is None:
        share = torch.zeros((channels, *shape))
        share[0] = 1
        return image, share[None]
    index = np.indices(tuple(shape * 2)).reshape(3, -1) / 2 - 0.25
    to_scan = np.linalg.inv(drawn.volume.affine) @ grid
    channel = drawn.landmarks_at(to_scan[:3, :3] @ index + to_scan[:3, 3:])
    blocks = channel.reshape(shape[0], 2, shape[1], 2, shape[2], 2).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 8)
    voxel, corner = np.nonzero(blocks)
    counts = np.bincount(blocks[voxel, corner].astype(np.int64) * len(blocks) + voxel, minlength=channels * len(blocks))
    share = torch.from_numpy(counts.reshape(channels, *shape).astype(np.float32) / 8)
    share[0] = 1 - share[1:].sum(dim=0)
    return image, share[None]


def _pose(head: Head, scan: Volume, rng: np.random.Generator, *, whole: bool, mirrored: bool) -> Points:
    """Return a random matrix from the scan's millimetres to the head's."""
    linear = random_rotation(rng, 20) @ np.diag(rng.uniform(0.85, 1.18) * rng.uniform(0.94, 1.06, 3))
    linear += rng.uniform(-0.05, 0.05, (3, 3)) * (1 - np.eye(3))
    if mirrored:
        linear = np.diag([-1.0, 1, 1]) @ linear
    middle = head.centres_mm.mean(axis=0) + np.array([0, 0, 10])
    room = np.array([15.0, 15, 15]) if whole else np.array([50.0, 60, 70])
    centre = scan.affine[:3, :3] @ ((np.array(scan.shape) - 1) / 2) + scan.affine[:3, 3]
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = middle + rng.uniform(-1, 1, 3) * room - linear @ centre
    return matrix


def _at(drawn: Drawn, index: Points) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return tissue and landmark of the unmirrored head at (3, N) voxel indices of the scan; 0 outside the map."""
    head = drawn.head
    if head is None:
        msg = "there is no head"
        raise ValueError(msg)
    to_map, to_warp = (
        _single(m @ drawn.volume.affine) for m in (np.linalg.inv(head.affine) @ drawn.to_head, drawn.to_warp)
    )
    single = index.astype(np.float32)
    in_map, in_warp = (m[:3, :3] @ single + m[:3, 3:] for m in (to_map, to_warp))
    sampled_at = torch.from_numpy(in_warp[::-1].T.copy())
    displacement = torch.nn.functional.grid_sample(
        drawn.warp[None], sampled_at[None, None, None], padding_mode="border", align_corners=True
    )
    nearest = np.rint(in_map + displacement.reshape(3, -1).numpy()).astype(np.int32)
    d, h, w = head.tissue.shape
    inside = ((nearest >= 0) & (nearest < np.array([[d], [h], [w]], np.int32))).all(axis=0)
    flat = np.where(inside, (nearest[0] * h + nearest[1]) * w + nearest[2], 0)
    tissue, landmark = head.tissue.reshape(-1)[flat], head.landmark.reshape(-1)[flat]
    return np.where(inside, tissue, 0).astype(np.uint8), np.where(inside, landmark, 0).astype(np.uint8)


def _single(matrix: Points) -> npt.NDArray[np.float32]:
    return matrix.astype(np.float32)


def _intensities(
    tissue: npt.NDArray[np.uint8], values: npt.NDArray[np.int64], rng: np.random.Generator, generator: torch.Generator
) -> torch.Tensor:
    means, spread = rng.uniform(0, 1, len(values)), rng.uniform(0, 0.08, len(values))
    # T1-weighted: fluid is darkest, then grey matter, then white matter; deep grey matter lies between the last two.
    fluid, white = rng.uniform(0, 0.3), rng.uniform(0.6, 1)
    share = {
        **dict.fromkeys(_FLUID, 0.0),
        **dict.fromkeys(_GREY, rng.uniform(0.35, 0.75)),
        **dict.fromkeys(_WHITE, 1.0),
    }
    share |= dict.fromkeys(_DEEP, rng.uniform(0.6, 0.95))
    for value, whiteness in share.items():
        means[values == value] = fluid + (white - fluid) * whiteness + rng.normal(0, 0.04)
    if rng.random() < 0.8:  # noqa: PLR2004
        means[0], spread[0] = rng.uniform(0, 0.05), rng.uniform(0, 0.02)
    if rng.random() < 0.25:  # noqa: PLR2004
        stripped = (values >= SCALP) | ((values == 24) & (rng.random() < 0.5))  # noqa: PLR2004
        means[stripped], spread[stripped] = means[0], spread[0]
    noise = torch.randn(tissue.shape, generator=generator)
    index = torch.from_numpy(tissue.astype(np.int64))
    return torch.tensor(means, dtype=torch.float32)[index] + noise * torch.tensor(spread, dtype=torch.float32)[index]


def _bias(image: torch.Tensor, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
    coarse_field = torch.randn((1, 1, 4, 4, 4), generator=generator) * float(rng.uniform(0, 0.4))
    field = interpolate(coarse_field, size=tuple(image.shape), mode="trilinear")[0, 0].exp()
    return (image * field).clamp_min(0) ** float(np.exp(rng.normal(0, 0.3)))


def _sliced(image: torch.Tensor, affine: Points, rng: np.random.Generator, generator: torch.Generator) -> Volume:
    """Return the scan with noise, half the time with thicker slices (up to 10 mm) along one of its axes."""
    step = [1, 1, 1]
    if rng.random() < 0.5:  # noqa: PLR2004
        step[int(rng.integers(3))] = int(rng.integers(1, 6))
    thick = avg_pool3d(image[None, None], tuple(step))[0]
    thick = thick + torch.randn(thick.shape, generator=generator) * float(rng.uniform(0, 0.1) ** 1.5)
    shifted = np.eye(4)
    shifted[:3, :3] = np.diag(step)
    shifted[:3, 3] = (np.array(step) - 1) / 2
    return Volume(thick.numpy(), affine @ shifted, b"")


def _shapes(
    shape: tuple[int, ...], rng: np.random.Generator, generator: torch.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the tissues of a scan without a head: blobs in an ellipsoid (Hoffmann et al., SynthMorph, 2022)."""
    tissues, grain = int(rng.integers(4, 12)), int(rng.integers(4, 14))
    noise = torch.randn((1, tissues, grain, grain, grain), generator=generator)
    blobs = interpolate(noise, size=shape, mode="trilinear")
    tissue = blobs[0].argmax(dim=0).numpy().astype(np.uint8) + 1
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radii = rng.uniform(0.5, 1.6, 3)
    tissue[sum((axis / r) ** 2 for axis, r in zip(axes, radii, strict=True)) > 1] = 0
    return tissue.ravel(), np.arange(tissues + 1) * 600


def random_rotation(rng: np.random.Generator, degrees: float) -> Points:
    """Return a (3, 3) rotation by a random angle of up to this many degrees about each axis in turn."""
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-degrees, degrees, 3))):
        a, b = [k for k in range(3) if k != axis]
        about_axis = np.eye(3)
        about_axis[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = rotation @ about_axis
    return rotation
