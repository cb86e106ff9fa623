"""Measures a network on its labelled cases at other voxel sizes: statements about them rest on figures, not on a range."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform, convolve1d
from torch import nn

from model_training.data.case import Case, read_case
from model_training.evaluation.evaluate import predictions_of
from service.bundle.card import Interval, ResolutionMeasurement
from service.bundle.schema import ServiceConfig
from service.calibration.cohort import CaseSums, cohort_scores
from service.pipeline.grid import Grid
from service.volume import Volume

IN_PLANE_MM: Final = (0.5, 0.7, 1.0, 1.5)
SLICES_MM: Final = (3.0, 4.5, 6.0)

Spacing = tuple[float, float, float]
Classes = npt.NDArray[np.uint8]


def common_spacings() -> list[Spacing]:
    """Return the voxel sizes that people send: equal along all axes, and thick slices across each of them."""
    thick = [
        (*[mm] * axis, slices, *[mm] * (2 - axis))
        for axis in range(3)
        for mm in IN_PLANE_MM[:3]
        for slices in SLICES_MM
    ]
    return [(mm, mm, mm) for mm in IN_PLANE_MM if mm != 1] + [(x, y, z) for x, y, z in thick]


def measure_resolutions(
    network: nn.Module,
    config: ServiceConfig,
    cases: Sequence[Case],
    spacings: Sequence[Spacing],
    done: Callable[[Case], None],
) -> list[ResolutionMeasurement]:
    """Measure a network on cases that are averaged or interpolated to each voxel size.

    Args:
        network: in evaluation mode.
        config: how the bundle is served.
        cases: labelled cases that the network was not trained on.
        spacings: voxel sizes along the axes of the bundle's orientation.
        done: called after each case, once for all voxel sizes.
    """
    if not spacings:
        return []
    sums: dict[Spacing, list[CaseSums]] = {spacing: [] for spacing in spacings}
    for case in cases:
        content = read_case(case, config)
        for spacing in spacings:
            (prediction,) = predictions_of(
                network, config, case, at_spacing(*content, spacing, config), [config.temperature]
            )
            sums[spacing].append(prediction.record(config.structures).sums())
        done(case)
    return [
        ResolutionMeasurement(
            spacing_mm=spacing,
            scores={name: Interval.of(figure) for name, figure in cohort_scores(found).items()},
        )
        for spacing, found in sums.items()
    ]


def at_spacing(scan: Volume, classes: Classes, spacing_mm: Spacing, config: ServiceConfig) -> tuple[Volume, Classes]:
    """Return a scan and its class indices at another voxel size, in the same place.

    Coarser voxels are means over their extent, of classes the class that fills most of it; finer ones are interpolated,
    by cubic splines.

    Args:
        scan: the scan.
        classes: (D, H, W) class indices.
        spacing_mm: along the axes of the bundle's orientation.
        config: of the bundle.
    """
    network_axis = Grid.of(scan, config).orientation[:, 0].astype(int)
    wanted = np.array(spacing_mm)[network_axis]
    factor = wanted / scan.spacing_mm
    shape = np.maximum(np.rint(np.array(scan.shape) / factor), 1).astype(int)
    # The middle of both grids is the same point.
    offset = (np.array(scan.shape) - 1) / 2 - factor * (shape - 1) / 2

    def resampled(image: npt.NDArray[np.float32], order: int) -> npt.NDArray[np.float32]:
        for axis, coarser in enumerate(factor):
            if coarser > 1:
                image = convolve1d(image, _mean_over(coarser), axis, mode="nearest")
        return np.asarray(
            affine_transform(image, factor, offset, tuple(shape), order=order, mode="nearest"), np.float32
        )

    channels = [resampled(channel.astype(np.float32), 3) for channel in scan.array_CDHW]
    shares = [resampled((classes == k).astype(np.float32), 1) for k in range(len(config.labels))]
    affine = scan.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] += scan.affine[:3, :3] @ offset
    return replace(scan, array_CDHW=np.stack(channels), affine=affine), np.argmax(shares, axis=0).astype(np.uint8)


def _mean_over(voxels: float) -> npt.NDArray[np.float64]:
    """Return the weights of the mean over a width in voxels, about a voxel's middle: the outermost count in part."""
    reach = (voxels - 1) / 2
    whole = int(reach)
    weights = np.ones(2 * whole + 3)
    weights[[0, -1]] = reach - whole
    return weights / weights.sum()
