"""Move the box about a landmark until it is centred on the structure that the network segments in it.

A network is trained on crops centred on an expert's outline. A landmark from a coarse grid is some millimetres off,
and other surroundings change the answer. So the network segments the box, the box moves to the middle of the
segmentation, and this is repeated until the box rests.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn

from service.bundle.schema import Part, ServiceConfig
from service.engines.machine import device_of
from service.errors import ConstantVolume
from service.pipeline.grid import Grid, PartGrid, to_axes_of
from service.pipeline.infer import sliding_window_logits
from service.pipeline.locate import LEAST_INSIDE, Box, Boxes, Points, not_found
from service.pipeline.parts import box_affine, crop, voxels_of
from service.pipeline.preprocess import preprocess
from service.volume import Volume

MOVES: Final = 4
"""Maximum number of moves of a box."""

RESTS_MM: Final = 1.0
"""A box that would move by less than this stays where it is."""

FARTHEST: Final = 0.3
"""Largest move, as a fraction of the search box's edges: farther away lies some other structure."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A part that will be segmented.

    Args:
        part: declared by the locator.
        volume: crop of the scan in the part's box, at the bundle's voxel size.
        channels: class of the result for each output channel of the network.
    """

    part: Part
    volume: Volume
    channels: tuple[int, ...]

    @property
    def centre_mm(self) -> Points:
        """(3,) centre of the box, RAS."""
        centre: Points = (
            self.volume.affine[:3, :3] @ ((np.array(self.volume.shape) - 1) / 2) + self.volume.affine[:3, 3]
        )
        return centre


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """The parts located in a scan; for the others, by name, the reason why they were not."""

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
            PartGrid(part.channels, np.linalg.inv(part.volume.affine) @ volume.affine @ to_scan, part.volume.shape)
            for part in self.placed
        )
        return Grid(grid.scan_shape, grid.orientation, grid.oriented_shape, grid.network_shape, grid.step, parts)


def place(network: nn.Module, volume: Volume, boxes: Boxes, config: ServiceConfig) -> Placement:
    """Centre the box of each part on the structure that the network segments near its landmark.

    Args:
        network: of the bundle, in evaluation mode.
        volume: the scan.
        boxes: about the landmarks.
        config: of the bundle.

    Raises:
        AnatomyNotFound: no part was located.
    """
    locator = config.locator
    if locator is None:
        msg = f"{config.name} has no locator"
        raise ValueError(msg)
    placed: list[Placed] = []
    absent = dict(boxes.absent)
    structures = len(config.labels) - 1
    for box in boxes.found:
        centred = _centred(network, volume, box, config)
        if isinstance(centred, str):
            absent[box.part.name] = centred
            continue
        first = 1 + locator.parts.index(box.part) * structures
        placed.append(Placed(box.part, centred, (0, *range(first, first + structures))))
    if not placed:
        raise not_found(locator, "; ".join(f"{name}: {why}" for name, why in absent.items()))
    return Placement(tuple(placed), absent)


def _centred(network: nn.Module, volume: Volume, box: Box, config: ServiceConfig) -> Volume | str:
    """Return the crop of the scan in the box at rest, or the reason why there is none."""
    shape = voxels_of(box.part.search_mm, config)
    centre_mm, device = box.centre_mm, device_of(network)
    for _ in range(MOVES):
        affine = box_affine(centre_mm, box.axes, shape, config)
        cropped, inside = crop(volume, affine, shape, device)
        if inside < LEAST_INSIDE:
            return f"{inside:.0%} of its box lies in the scan"
        middle = _middle(network, cropped, config)
        if middle is None:
            return "the network marks nothing where it should be"
        middle_mm = affine[:3, :3] @ middle + affine[:3, 3]
        if (np.abs((middle_mm - box.centre_mm) @ box.axes) > FARTHEST * np.array(box.part.search_mm)).any():
            return "what the network marks lies too far from where it should be"
        rests = shape == voxels_of(box.part.size_mm, config) and np.linalg.norm(middle_mm - centre_mm) < RESTS_MM
        if rests:
            return cropped
        shape, centre_mm = voxels_of(box.part.size_mm, config), middle_mm
    cropped, inside = crop(volume, box_affine(centre_mm, box.axes, shape, config), shape, device)
    return cropped if inside >= LEAST_INSIDE else f"{inside:.0%} of its box lies in the scan"


def _middle(network: nn.Module, cropped: Volume, config: ServiceConfig) -> Points | None:
    """Return the (3,) voxel index of the middle of the segmentation's bounding box; None if nothing is segmented."""
    try:
        image, _ = preprocess(cropped, config)
    except ConstantVolume:
        return None
    logits = sliding_window_logits(network, image.to(device_of(network)), config)
    marked = logits.argmax(dim=0) > 0
    # Which planes hold something, along all three axes, comes back in one copy.
    filled = torch.cat([marked.any(dim=others) for others in ((1, 2), (0, 2), (0, 1))]).cpu().numpy()
    planes = [np.flatnonzero(along) for along in np.split(filled, np.cumsum(marked.shape)[:-1])]
    return np.array([(along[0] + along[-1]) / 2 for along in planes]) if filled.any() else None
