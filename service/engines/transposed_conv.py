"""Transposed convolution written so that OpenVINO computes it at the precision asked for.

OpenVINO carries out transposed convolutions in three dimensions in float32, whatever its precision.
"""

from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import conv3d, pad


class PhasedConvTranspose3d(nn.Module):
    """The function of a `torch.nn.ConvTranspose3d` for one window, (1, C, D, H, W), as one ordinary convolution.

    With a stride of s, the output voxels s * q + phase, phase < s, are weighted sums of input voxels around q. So a
    convolution on the input's grid computes each phase, as channels of their own, which are then interleaved.
    """

    def __init__(self, conv: nn.ConvTranspose3d) -> None:
        """Take over stride, weights and bias of one that `fits`."""
        super().__init__()
        self._stride, self._channels = conv.stride, conv.out_channels
        axes = [_taps(kernel, stride, padding) for kernel, stride, padding, _ in _sizes(conv)]
        nearest, farthest = ([extreme(tap.offset for tap in taps) for taps in axes] for extreme in (min, max))
        self._widths = [n for low, high in zip(nearest, farthest, strict=True) for n in (high, -low)][::-1]
        size = [high - low + 1 for low, high in zip(nearest, farthest, strict=True)]
        weight = torch.zeros(*conv.stride, conv.out_channels, conv.in_channels, *size)
        for taps in product(*axes):
            phase, source, offset = zip(*taps, strict=True)
            place = [n - low for n, low in zip(offset, nearest, strict=True)]
            weight[(*phase, ..., *place)] = conv.weight.detach()[(..., *source)].T
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self._weight = nn.Parameter(weight.flatten(0, 3), requires_grad=False)
        self._bias = nn.Parameter(bias.repeat(prod(conv.stride)), requires_grad=False)

    @staticmethod
    def fits(conv: nn.ConvTranspose3d) -> bool:
        """Return whether each axis becomes as many times longer as its stride says, and all channels mix."""
        longer = all(kernel - 2 * padding + more == stride for kernel, stride, padding, more in _sizes(conv))
        return longer and conv.groups == 1 and set(conv.dilation) == {1}

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return (1, C, D, H, W), each axis as many times longer as its stride says."""
        phases = conv3d(pad(window, self._widths), self._weight, self._bias)
        d, h, w = (int(n) for n in window.shape[2:])
        r, s, t = self._stride
        # Channels last, as OpenVINO's convolutions write them: what moves stays in longer pieces.
        phases = phases.permute(0, 2, 3, 4, 1).reshape(d, h, w, r, s, t * self._channels)
        voxels = phases.permute(0, 3, 1, 4, 2, 5).reshape(1, d * r, h * s, w * t, self._channels)
        return voxels.permute(0, 4, 1, 2, 3)


def _sizes(conv: nn.ConvTranspose3d) -> list[tuple[int, int, int, int]]:
    """Return kernel, stride, padding and output padding of each axis."""
    return list(zip(conv.kernel_size, conv.stride, conv.padding, conv.output_padding, strict=True))  # type: ignore[arg-type]


class _Tap(NamedTuple):
    """Along one axis: output voxel s * q + phase takes input voxel q + offset with weight `source` of the kernel."""

    phase: int
    source: int
    offset: int


def _taps(kernel: int, stride: int, padding: int) -> list[_Tap]:
    """Return all of an axis: s * q + phase + padding = s * input + source (torch.nn.ConvTranspose3d)."""
    pairs = product(range(stride), range(kernel))
    return [
        _Tap(phase, source, (phase + padding - source) // stride)
        for phase, source in pairs
        if (phase + padding - source) % stride == 0
    ]
