"""Sums of values by bin, for several rows at once, float64, the same in every run.

On a CPU `bincount` adds up. On a GPU it would make the program wait, and add float64 values in a changing order. There the
values become integers of 64 bits, value times 2^k rounded, whose sums do not depend on their order. k is as large as N
values of at most 1 allow, 62 - ceil(log2 N): then a bin's mean is off by at most 2^-(k+1), 1.1e-13 for 96^3 voxels.

Shapes: K rows, N voxels.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch

LARGEST_BLOCK: Final = 1 << 22
"""Voxels that a GPU works off at once: more gain nothing, and each needs about 30 bytes."""

_SLOTS: Final = 1024
"""Partial sums of each bin: neighbouring voxels add to different ones, so that no two of them wait for one another."""

_BITS: Final = 62


def asynchronous(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's device computes while the program goes on, so that reading a value makes it wait."""
    return tensor.device.type != "cpu"


def blocks_of(tensor: torch.Tensor) -> list[tuple[int, slice]]:
    """Return every image b of a (B, C, N) tensor with slices of its classes: single ones on a CPU, several on a GPU."""
    images, classes, voxels = tensor.shape
    several = max(1, LARGEST_BLOCK // max(voxels, 1)) if asynchronous(tensor) else 1
    starts = range(0, classes, several)
    return [(b, slice(c, min(c + several, classes))) for b in range(images) for c in starts]


class BinSums:
    """Sums over the voxels of each bin."""

    def __init__(self, index: torch.Tensor, bins: int) -> None:
        """Prepare the sums.

        Args:
            index: (K, N) uint8 below `bins`.
            bins: number of bins.
        """
        self._index = index
        self._bins = bins
        self._places: torch.Tensor | None = None
        if asynchronous(index):
            slot = torch.arange(index.shape[1], device=index.device).remainder_(_SLOTS)
            # What came from NaN may lie beyond the last bin: the losses refuse it, but not before the sums are begun.
            self._places = torch.add(slot, index, alpha=_SLOTS).clamp_(max=bins * _SLOTS - 1)

    def count(self) -> torch.Tensor:
        """Return the number of voxels, (K, bins) float64."""
        if self._places is None:
            return self._counted([None] * len(self._index))
        return self._scattered(self._index.new_ones((), dtype=torch.int64).expand(self._index.shape)).double()

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sums of values, (K, bins) float64.

        Args:
            values: (K, N) float64 in [-1, 1].
        """
        if self._places is None:
            return self._counted(list(values))
        scale = 2.0 ** (_BITS - math.ceil(math.log2(max(values.shape[1], 1))))
        return self._scattered(torch.mul(values, scale).round_().long()).double() / scale

    def _counted(self, values: Sequence[torch.Tensor | None]) -> torch.Tensor:
        sums = [
            torch.bincount(row, weights=of_row, minlength=self._bins)
            for row, of_row in zip(self._index, values, strict=True)
        ]
        return torch.stack(sums).double()

    def _scattered(self, values: torch.Tensor) -> torch.Tensor:
        assert self._places is not None  # noqa: S101 - called for a GPU only
        sums = values.new_zeros((len(values), self._bins * _SLOTS))
        return sums.scatter_add_(1, self._places, values).view(len(values), self._bins, _SLOTS).sum(dim=2)
