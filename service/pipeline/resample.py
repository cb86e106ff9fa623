"""Resample an image to a grid that lies at any angle, where the image is: on the CPU or on a GPU."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import grid_sample

Matrix = npt.NDArray[np.float64]


def resampled(
    image: torch.Tensor, to_index: Matrix, size: tuple[int, ...], outside: Literal["zeros", "border"] = "zeros"
) -> torch.Tensor:
    """Resample an image to another grid by trilinear interpolation, on the image's device.

    Args:
        image: (1, C, D, H, W).
        to_index: (4, 4) index of the new grid to index of the image.
        size: (3,) voxels of the new grid.
        outside: values beyond the image: zero, or those of its border.
    """
    at = positions(to_index, size, image.device)
    normalised = torch.empty_like(at)
    for axis, n in enumerate(image.shape[2:]):
        # An axis of a single plane: within half a voxel the plane itself is taken.
        normalised[axis] = 2 * at[axis] / (n - 1) - 1 if n > 1 else 2 * at[axis] * (at[axis].abs() > 0.5)  # noqa: PLR2004
    places = normalised.flip(0).T.reshape(*size, 3).float()[None]
    return grid_sample(image, places, mode="bilinear", padding_mode=outside, align_corners=True)


def positions(to_index: Matrix, size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the index in an image, (3, N) float64, of each voxel of a grid in order of its axes.

    Args:
        to_index: (4, 4) index of the grid to index of the image.
        size: (3,) voxels of the grid.
        device: of the result. On a CPU numpy computes, whose products round differently.
    """
    if device.type == "cpu":
        return torch.from_numpy(to_index[:3, :3] @ np.indices(size).reshape(3, -1) + to_index[:3, 3:])
    return positions_on_device(to_index, size, device)


def positions_on_device(to_index: Matrix, size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return what `positions` returns, computed by torch on any device."""
    matrix = torch.from_numpy(np.ascontiguousarray(to_index[:3])).to(device, non_blocking=True)
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in size]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    return matrix[:, :3] @ index + matrix[:, 3:]
