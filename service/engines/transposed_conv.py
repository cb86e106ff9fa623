"""Transposed convolution in a form that OpenVINO computes at the requested precision.

OpenVINO computes 3-D transposed convolutions in float32, whatever the requested precision.
"""

from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import conv3d, pad


class PhasedConvTranspose3d(nn.Module):
    """Computes a `torch.nn.ConvTranspose3d` for one window, (1, C, D, H, W), by one ordinary convolution.

    With a stride of s, the output voxels s * q + phase, phase < s, are weighted sums of input voxels around q. So a
    convolution on the input's grid computes all phases as separate channels, which are then interleaved.
    """

    def __init__(self, conv: nn.ConvTranspose3d) -> None:
        """Take stride, weights and bias from a layer that `fits`."""
        super().__init__()
        self._stride, self._channels = conv.stride, conv.out_channels
        axes = [_taps(kernel, stride, padding) for kernel, stride, padding, _ in _sizes(conv)]
        nearest, farthest = ([extreme(tap.offset for tap in taps) for taps in axes] for extreme in (min, max))
        self._widths = [n for low, high in zip(nearest, farthest, strict=True) for n in (high, -low)][::-1]
        size = [high - low + 1 for low, high in zip(nearest, farthest, strict=True)]
        weight = torch.zeros(*conv.stride, conv.out_channels, conv.in_channels, *size)
        for taps in product(*axes):
            phase, source, offset = zip(*taps, strict=True)
            index = (torch.tensor(offset) - torch.tensor(nearest)).tolist()
            weight[(*phase, ..., *index)] = conv.weight.detach()[(..., *source)].T
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self._weight = nn.Parameter(weight.flatten(0, 3), requires_grad=False)
        self._bias = nn.Parameter(bias.repeat(prod(conv.stride)), requires_grad=False)

    @staticmethod
    def fits(conv: nn.ConvTranspose3d) -> bool:
        """Return whether a layer lengthens each axis exactly by its stride, without groups or dilation."""
        longer = all(kernel - 2 * padding + more == stride for kernel, stride, padding, more in _sizes(conv))
        return longer and conv.groups == 1 and set(conv.dilation) == {1}

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return (1, C, D, H, W) with each axis lengthened by its stride."""
        phases = conv3d(pad(window, self._widths), self._weight, self._bias)
        d, h, w = (int(n) for n in window.shape[2:])
        r, s, t = self._stride
        # Channels last, the layout that OpenVINO's convolutions write: memory is moved in longer runs.
        phases = phases.permute(0, 2, 3, 4, 1).reshape(d, h, w, r, s, t * self._channels)
        voxels = phases.permute(0, 3, 1, 4, 2, 5).reshape(1, d * r, h * s, w * t, self._channels)
        return voxels.permute(0, 4, 1, 2, 3)


def _sizes(conv: nn.ConvTranspose3d) -> list[tuple[int, int, int, int]]:
    """Return kernel size, stride, padding and output padding along each axis."""
    return list(zip(conv.kernel_size, conv.stride, conv.padding, conv.output_padding, strict=True))  # type: ignore[arg-type]


class _Tap(NamedTuple):
    """A term along one axis: output voxel s * q + phase uses input voxel q + offset with kernel weight `source`."""

    phase: int
    source: int
    offset: int


def _taps(kernel: int, stride: int, padding: int) -> list[_Tap]:
    """Return all taps of an axis: s * q + phase + padding = s * input + source (torch.nn.ConvTranspose3d)."""
    pairs = product(range(stride), range(kernel))
    return [
        _Tap(phase, source, (phase + padding - source) // stride)
        for phase, source in pairs
        if (phase + padding - source) % stride == 0
    ]
