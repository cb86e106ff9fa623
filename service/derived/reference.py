"""An uploaded reference mask -> the output channel of each voxel, provided that it lies on the scan's grid."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.errors import GeometryMismatch, UnknownLabels
from service.intake.sandbox import decode_sandboxed
from service.result.frame import Frame
from service.volume import Volume

TOLERANCE: Final = 0.01
"""Largest shift of a corner, as a fraction of the shortest voxel edge: other programs round affines."""

_LISTED: Final = 20


def read_reference(path: Path, frame: Frame) -> npt.NDArray[np.uint8]:
    """Return the output channel of each voxel of a reference, (D, H, W) on the scan's grid.

    Args:
        path: a file in any format of scans.
        frame: of the result that it belongs to.

    Raises:
        ScanError: the file cannot be read.
        GeometryMismatch: shape or position in the patient differ from the scan's.
        UnknownLabels: a value that is not a label of the model.
    """
    volume = decode_sandboxed(path)
    reject_other_grid(volume, frame.scan_shape, frame.affine_ras)
    return _channels(volume.array_CDHW[0], frame.values)


def reject_other_grid(volume: Volume, scan_shape: tuple[int, ...], affine_ras: npt.NDArray[np.float64]) -> None:
    """Refuse a reference whose voxels are not those of the scan.

    Args:
        volume: the reference.
        scan_shape: voxels of the scan along i, j and k.
        affine_ras: (4, 4) voxel index of the scan to RAS millimetres.

    Raises:
        GeometryMismatch: the shapes differ, or a corner is shifted by more than `TOLERANCE` of the shortest edge.
    """
    if len(volume.array_CDHW) != 1 or volume.shape != scan_shape:
        channels = len(volume.array_CDHW)
        several = f" in {channels} channels" if channels > 1 else ""
        msg = (
            f"The reference has {_spelt(volume.shape)} voxels{several}; the scan has {_spelt(scan_shape)} (i x j x k). "
            "Send a mask that was drawn on the scan as it was sent, not resampled or reoriented."
        )
        raise GeometryMismatch(msg)
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(scan_shape)[:, np.newaxis] - 1)
    corners = np.vstack([corners, np.ones(8)])
    shift_mm = float(np.linalg.norm(((volume.affine - affine_ras) @ corners)[:3], axis=0).max())
    shortest_mm = float(np.linalg.norm(affine_ras[:3, :3], axis=0).min())
    if shift_mm > TOLERANCE * shortest_mm:
        msg = (
            f"The affines of reference and scan differ: a corner lies {shift_mm:.3g} mm from where it should; up to "
            f"{TOLERANCE * shortest_mm:.3g} mm are accepted. Send a mask that was drawn on the scan as it was sent."
        )
        raise GeometryMismatch(msg)


def _channels(array: npt.NDArray[Any], values: list[int]) -> npt.NDArray[np.uint8]:
    # Values that cannot be labels become 256; a mask may be stored as float.
    bytes_or_none = np.where((array >= 0) & (array <= 255) & (array == np.floor(array)), array, 256).astype(np.uint16)  # noqa: PLR2004
    channel_of = np.full(257, len(values), np.uint16)
    channel_of[values] = np.arange(len(values))
    channels = channel_of[bytes_or_none]
    unknown = np.unique(array[channels == len(values)])
    if unknown.size:
        listed = ", ".join(f"{float(value):g}" for value in unknown[:_LISTED])
        more = f" and {unknown.size - _LISTED} more" if unknown.size > _LISTED else ""
        msg = f"The reference holds {listed}{more}; the model's labels are {', '.join(map(str, values))}. Map its values to these."
        raise UnknownLabels(msg)
    return channels.astype(np.uint8)


def _spelt(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
