"""A box about a landmark -> the box about what the network finds in it, so that a few millimetres do not matter.

The crops that a network was trained on lie about the structure as an expert drew it. A landmark on a coarse grid is
some millimetres off, and what comes into view there changes the answer: so the network looks, the box moves to the
middle of what it found, and it looks again until the box rests.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import nn

from service.bundle.schema import Part, ServiceConfig
from service.errors import ConstantVolume
from service.pipeline.grid import Grid, PartGrid, to_axes_of
from service.pipeline.infer import sliding_window_logits
from service.pipeline.locate import LEAST_INSIDE, Box, Boxes, Points, not_found
from service.pipeline.parts import box_affine, crop, voxels_of
from service.pipeline.preprocess import preprocess
from service.volume import Volume

MOVES: Final = 4
"""Times that a box is moved at most."""

RESTS_MM: Final = 1.0
"""A box that would move by less than this rests."""

FARTHEST: Final = 0.3
"""A box may move by this share of the edges of the box in which it was looked for first: beyond is something else."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A part that will be segmented.

    Args:
        part: what it is.
        volume: what the scan shows in its box, on the bundle's voxel size.
        channels: class of the result for each output channel of the network.
    """

    part: Part
    volume: Volume
    channels: tuple[int, ...]

    @property
    def centre_mm(self) -> Points:
        """(3,) RAS."""
        centre: Points = (
            self.volume.affine[:3, :3] @ ((np.array(self.volume.shape) - 1) / 2) + self.volume.affine[:3, 3]
        )
        return centre


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where the parts of a scan lie, and why others do not: name of each and the reason."""

    placed: tuple[Placed, ...]
    absent: dict[str, str]

    def grid(self, volume: Volume, config: ServiceConfig) -> Grid:
        """Return the grid that leads from the logits of all parts to the scan.

        Args:
            volume: the scan.
            config: of the bundle.
        """
        grid = Grid.of(volume, config)
        to_scan = to_axes_of(grid)
        parts = tuple(
            PartGrid(each.channels, np.linalg.inv(each.volume.affine) @ volume.affine @ to_scan, each.volume.shape)
            for each in self.placed
        )
        return Grid(grid.scan_shape, grid.orientation, grid.oriented_shape, grid.network_shape, grid.step, parts)


def place(network: nn.Module, volume: Volume, boxes: Boxes, config: ServiceConfig) -> Placement:
    """Return the box of each part about what the network finds near its landmark.

    Raises:
        AnatomyNotFound: no part is there.
    """
    locator = config.locator
    if locator is None:
        msg = f"{config.name} has no locator"
        raise ValueError(msg)
    placed: list[Placed] = []
    absent = dict(boxes.absent)
    structures = len(config.labels) - 1
    for box in boxes.found:
        seen = _centred(network, volume, box, config)
        if isinstance(seen, str):
            absent[box.part.name] = seen
            continue
        first = 1 + locator.parts.index(box.part) * structures
        placed.append(Placed(box.part, seen, (0, *range(first, first + structures))))
    if not placed:
        raise not_found(locator, "; ".join(f"{name}: {why}" for name, why in absent.items()))
    return Placement(tuple(placed), absent)


def _centred(network: nn.Module, volume: Volume, box: Box, config: ServiceConfig) -> Volume | str:
    """Return what the scan shows in the box that rests, or why there is none."""
    shape = voxels_of(box.part.search_mm, config)
    centre_mm = box.centre_mm
    for _ in range(MOVES):
        affine = box_affine(centre_mm, box.axes, shape, config)
        seen, inside = crop(volume, affine, shape)
        if inside < LEAST_INSIDE:
            return f"{inside:.0%} of its box lies in the scan"
        middle = _middle(network, seen, config)
        if middle is None:
            return "the network marks nothing where it should be"
        found_mm = affine[:3, :3] @ middle + affine[:3, 3]
        if (np.abs((found_mm - box.centre_mm) @ box.axes) > FARTHEST * np.array(box.part.search_mm)).any():
            return "what the network marks lies too far from where it should be"
        rests = shape == voxels_of(box.part.size_mm, config) and np.linalg.norm(found_mm - centre_mm) < RESTS_MM
        if rests:
            return seen
        shape, centre_mm = voxels_of(box.part.size_mm, config), found_mm
    seen, inside = crop(volume, box_affine(centre_mm, box.axes, shape, config), shape)
    return seen if inside >= LEAST_INSIDE else f"{inside:.0%} of its box lies in the scan"


def _middle(network: nn.Module, seen: Volume, config: ServiceConfig) -> Points | None:
    """Return the (3,) voxel index of the middle of the bounding box of what the network finds; None if nothing."""
    try:
        image, _ = preprocess(seen, config)
    except ConstantVolume:
        return None
    device = next(network.parameters()).device
    logits = sliding_window_logits(network, image.to(device), config)
    found = np.argwhere(logits.argmax(dim=0).cpu().numpy() > 0)
    return None if not len(found) else (found.min(axis=0) + found.max(axis=0)) / 2
