"""Mask, confidence and card -> the image-level summary; the statement is the card's, or it is withdrawn."""

import numpy as np

from service.bundle.card import Measurement
from service.bundle.description import BundleDescription
from service.bundle.statement import FEATURES, reasons_to_withdraw, state
from service.pipeline.calibrate import Segmentation
from service.pipeline.preprocess import Grid
from service.schemas import Structure, Summary
from service.volume import Volume


def summarise(
    segmentation: Segmentation, volume: Volume, grid: Grid, bundle: BundleDescription, measurement: Measurement
) -> Summary:
    """Return the summary of one segmented scan.

    Args:
        segmentation: mask and confidence.
        volume: the scan.
        grid: its place on the network's axes.
        bundle: the model and its card.
        measurement: the card's figures for the engine and precision that ran.
    """
    foreground = segmentation.mask > 0
    return Summary(
        model=bundle.identity,
        structures=[
            _structure(segmentation, label.value, label.name, volume.voxel_ml) for label in bundle.config.labels[1:]
        ],
        foreground_confidence=float(segmentation.confidence[foreground].mean()) if foreground.any() else None,
        statement=state(bundle.card, measurement, reasons_to_withdraw(features_of(volume, grid), bundle.card)),
        warnings=list(volume.warnings),
    )


def features_of(volume: Volume, grid: Grid) -> dict[str, float]:
    """Return the features, in mm, by which a scan is compared with the card's cases."""
    spacing = volume.spacing_mm[np.argsort(grid.orientation[:, 0])]
    return dict(zip(FEATURES, [*(np.array(grid.oriented_shape) * spacing).tolist(), *spacing.tolist()], strict=True))


def _structure(segmentation: Segmentation, value: int, name: str, voxel_ml: float) -> Structure:
    inside = segmentation.mask == value
    voxels = int(inside.sum())
    confidence = float(segmentation.confidence[inside].mean()) if voxels else None
    return Structure(label=value, name=name, voxels=voxels, volume_ml=voxels * voxel_ml, mean_confidence=confidence)
