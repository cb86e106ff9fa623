"""A labelled case on disk, and how it is read for training."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from service.bundle.schema import ServiceConfig
from service.errors import CalibrantError, ScanError
from service.intake.decode import decode_scan
from service.pipeline.preprocess import labels_to_network_grid, preprocess
from service.volume import Volume

_SAME_PLACE_MM = 1e-3


class DataError(CalibrantError, title="The data cannot be used", status=422):
    """The data set differs from what the recipe expects; the message names the file and the fix."""


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled scan and the person it shows."""

    name: str
    person: str
    images: tuple[Path, ...]
    """One file per input channel, in the order of the recipe's channels."""
    label: Path


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A case on the network's grid: image (C, D, H, W) float32 and class indices (1, D, H, W) uint8."""

    case: Case
    image: torch.Tensor
    label: torch.Tensor


def read_scan(case: Case) -> Volume:
    """Return the images of a case as one volume, a channel per image.

    Raises:
        DataError: a file cannot be read, or two channels have different grids.
    """
    channels = [_decoded(path) for path in case.images]
    for path, channel in zip(case.images, channels, strict=True):
        _reject_another_grid(path, channel, case.images[0], channels[0])
    return replace(channels[0], array_CDHW=np.concatenate([channel.array_CDHW for channel in channels]))


def read_labels(case: Case, config: ServiceConfig) -> tuple[Volume, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Return the label volume of a case and its class indices, (D, H, W) uint8 on the same grid.

    Raises:
        DataError: the file cannot be read, or holds a value that no label of the recipe has.
    """
    volume = _decoded(case.label)
    values = np.array([label.value for label in config.labels])
    present = np.unique(volume.array_CDHW)
    if unknown := sorted(set(present.tolist()) - set(values.tolist())):
        msg = f"{case.label} holds the values {unknown}; the recipe knows {values.tolist()}. Map them, or fix the recipe's labels."
        raise DataError(msg)
    order = np.argsort(values)
    return volume, order[np.searchsorted(values[order], volume.array_CDHW[0])].astype(np.uint8)


def read_case(case: Case, config: ServiceConfig) -> tuple[Volume, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Return the scan of a case and its class indices, (D, H, W) uint8 on the same grid.

    Raises:
        DataError: as `read_scan` and `read_labels`, or scan and label have different grids.
    """
    scan = read_scan(case)
    labels, classes = read_labels(case, config)
    _reject_another_grid(case.label, labels, case.images[0], scan)
    return scan, classes


def load_sample(case: Case, config: ServiceConfig) -> Sample:
    """Return the case on the network's grid, preprocessed exactly as for serving.

    Raises:
        DataError: a file cannot be read or normalised, images and label have different grids, or a label value is
            unknown.
    """
    scan, classes = read_case(case, config)
    try:
        image, grid = preprocess(scan, config)
    except CalibrantError as error:
        msg = f"{case.images[0]} cannot be preprocessed. {error}"
        raise DataError(msg) from error
    return Sample(case, image, labels_to_network_grid(classes, grid))


def _decoded(path: Path) -> Volume:
    try:
        return decode_scan(path)
    except ScanError as error:
        msg = f"{path} cannot be read. {error}"
        raise DataError(msg) from error


def _reject_another_grid(path: Path, volume: Volume, other: Path, reference: Volume) -> None:
    if volume.shape != reference.shape:
        msg = f"{path} lies on another grid than {other}: {volume.shape} and {reference.shape} voxels. Resample the one to the other."
        raise DataError(msg)
    if not np.allclose(volume.affine, reference.affine, atol=_SAME_PLACE_MM):
        msg = f"{path} lies on another grid than {other}: their affines differ. Resample the one to the other, or mend its header."
        raise DataError(msg)
