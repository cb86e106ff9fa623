"""Which voxels of a scan show nothing: declared padding, constant planes, and the value with which such planes are filled.

They say nothing about the patient, but they move means, percentiles and deviations.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from service.errors import ConstantVolume
from service.volume import Volume

_LOOKED_AT: Final = 4
"""Rows and columns of a plane that are looked at before the whole plane is."""

_MOST_FILLS: Final = 4
"""With more different values, constant planes are a picture of something, e.g. a ramp, and no filling."""

_SAMPLE: Final = 1 << 20
"""About as many evenly spaced voxels give the range of usual values."""

_USUAL: Final = (0.5, 99.5)
"""Percentiles between which values are usual."""

_FAR: Final = 5.0
"""Values are outliers this many ranges of usual values beyond them."""

_MENTIONED: Final = 0.005
"""Share of padding from which the user is told."""

Mask = npt.NDArray[np.bool_]


class Tissue(NamedTuple):
    """What of a scan shows something.

    Args:
        padding: (C, D, H, W) voxels that show nothing; None if there are none.
        warnings: shares of such voxels and of outliers, for the user.
    """

    padding: Mask | None
    warnings: tuple[str, ...]

    def box(self, shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        """Return the smallest box of the scan that holds everything it shows.

        Args:
            shape: of the scan.
        """
        if self.padding is None:
            d, h, w = (slice(0, n) for n in shape)
            return d, h, w
        shown: Mask = ~np.all(self.padding, axis=0)
        along = [np.flatnonzero(np.any(shown, axis=tuple(k for k in range(3) if k != axis))) for axis in range(3)]
        d, h, w = (slice(int(found[0]), int(found[-1]) + 1) for found in along)
        return d, h, w


def tissue_of(volume: Volume) -> Tissue:
    """Find the voxels of a scan that show nothing.

    Raises:
        ConstantVolume: none shows anything.
    """
    declared = volume.padding
    of_channels = [padding_of(channel, declared) for channel in volume.array_CDHW]
    padding = None
    if any(mask is not None for mask in of_channels):
        nothing = np.zeros(volume.shape, np.bool_)
        padding = np.stack([nothing if mask is None else mask for mask in of_channels])
        if any(mask.all() for mask in padding):
            msg = (
                "Every plane of the scan is constant: there is nothing to segment. Check that the right file was sent."
            )
            raise ConstantVolume(msg)
    return Tissue(padding, tuple(_warnings(volume, padding)))


def padding_of(channel: npt.NDArray[np.generic], declared: Mask | None = None) -> Mask | None:
    """Return the voxels of constant planes, and those of the value with which outermost planes are filled; None if none.

    Args:
        channel: (D, H, W) intensities of any type.
        declared: (D, H, W) voxels that the file declares to show nothing. They are part of what is returned, and their
            value is not taken for a filling: it is one that tissue may have.
    """
    planes = {axis: constant_planes(channel, axis) for axis in range(channel.ndim)}
    if declared is None and not any(len(found) for found in planes.values()):
        return None
    mask = np.zeros(channel.shape, np.bool_) if declared is None else declared.copy()
    fills = set()
    for axis, found in planes.items():
        of_axis, mask_of_axis = np.moveaxis(channel, axis, 0), np.moveaxis(mask, axis, 0)
        outermost = [plane for plane in found if plane in {0, channel.shape[axis] - 1}]
        known = set() if declared is None else {k for k in outermost if np.moveaxis(declared, axis, 0)[k].all()}
        mask_of_axis[found] = True
        fills |= {of_axis[plane].flat[0].item() for plane in outermost if plane not in known}
    if len(fills) <= _MOST_FILLS:
        for fill in fills:
            mask |= channel == fill
    return mask


def constant_planes(channel: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.intp]:
    """Return the indices of the planes across an axis whose voxels are all equal; none for an axis of one plane."""
    planes = np.moveaxis(channel, axis, 0)
    if len(planes) == 1:
        return np.empty(0, np.intp)
    every = [max(1, n // _LOOKED_AT) for n in planes.shape[1:]]
    few = planes[:, :: every[0], :: every[1]].reshape(len(planes), -1)
    candidates = np.flatnonzero((few == few[:, :1]).all(axis=1))
    return np.array([k for k in candidates if (planes[k] == planes[k].flat[0]).all()], np.intp)


def _warnings(volume: Volume, padding: Mask | None) -> list[str]:
    warnings = []
    share = 0.0 if padding is None else float(padding.mean())
    if volume.padding is not None:  # what the file declares is nothing to warn of
        share -= float(volume.padding.mean())
    if share >= _MENTIONED:
        warnings.append(
            f"{100 * share:.1f} % of the voxels show nothing (constant planes, or the value that fills them): they were "
            "left out of the intensities' statistics."
        )
    outliers = sum(
        _outliers(channel, None if padding is None else padding[c]) for c, channel in enumerate(volume.array_CDHW)
    )
    if outliers:
        part = 100 * outliers / volume.array_CDHW.size
        warnings.append(
            f"Far outside the usual intensities of the scan, and clipped: {outliers} voxel{'s' if outliers > 1 else ''} ({part:.2g} %)."
        )
    return warnings


def _outliers(channel: npt.NDArray[Any], padding: Mask | None) -> int:
    """Return how many voxels lie farther from the usual values than `_FAR` times their range."""
    step = max(1, round((channel.size / _SAMPLE) ** (1 / 3)))
    some = (slice(None, None, step),) * channel.ndim
    sample = channel[some] if padding is None else channel[some][~padding[some]]
    if not sample.size:
        return 0
    low, high = (float(value) for value in np.percentile(sample.astype(np.float64), _USUAL))
    reach = _FAR * (high - low)
    if not reach or (float(channel.min()) >= low - reach and float(channel.max()) <= high + reach):
        return 0
    far = (channel < low - reach) | (channel > high + reach)
    return int(np.count_nonzero(far if padding is None else far & ~padding))
