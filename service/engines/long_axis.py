"""A network turned so that its convolutions run along a long axis: on a CPU a row of the last axis is computed at once."""

import copy
from typing import Any, Final

import torch
from monai.networks.nets import SegResNetDS
from torch import nn

_SIZED: Final = {
    nn.Conv3d: ("kernel_size", "stride", "padding", "dilation"),
    nn.ConvTranspose3d: ("kernel_size", "stride", "padding", "output_padding", "dilation"),
    nn.Upsample: ("scale_factor",),
}
"""Layers that have a size along each axis, and where they keep it."""

_ALIKE: Final = (
    nn.GroupNorm,
    nn.InstanceNorm3d,
    nn.BatchNorm3d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Dropout,
    nn.Identity,
)
"""Layers to which all axes are alike."""

_SHORT: Final = 48
"""Rows up to this length leave the processor's vectors idle, the more so the shorter they are."""


class LongAxisLast(nn.Module):
    """The function of a network, computed with the last axis of the window, D, H or W, swapped with another one."""

    def __init__(self, network: nn.Module, axis: int) -> None:
        """Keep a turned copy of a network that is `turnable`.

        Args:
            network: in evaluation mode.
            axis: of the window (1, channels, D, H, W) that is swapped with the last one: 2 or 3.
        """
        super().__init__()
        self.axis = axis
        self._network = _turned(network, axis)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, C, D, H, W) of a window (1, channels, D, H, W)."""
        logits: torch.Tensor = self._network(window.transpose(self.axis, -1))
        return logits.transpose(self.axis, -1)


def with_long_axis_last(network: nn.Module, window: torch.Tensor) -> nn.Module:
    """Return the network turned if that is worth it for windows of this one's size, else itself."""
    shape = window.shape
    longest = max((3, 2), key=lambda axis: shape[axis])
    worth_it = shape[-1] <= _SHORT and shape[longest] >= 2 * shape[-1]
    return LongAxisLast(network, longest) if worth_it and turnable(network) else network


def turnable(network: nn.Module) -> bool:
    """Return whether nothing in the network but what is known here depends on the order of the axes."""
    layers = [module for module in network.modules() if not list(module.children())]
    return all(isinstance(layer, (*_SIZED, *_ALIKE)) for layer in layers)


def _turned(network: nn.Module, axis: int) -> nn.Module:
    network = copy.deepcopy(network)
    for module in network.modules():
        for name in _SIZED.get(type(module), ()):
            setattr(module, name, _swapped(getattr(module, name), axis))
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.weight = nn.Parameter(module.weight.detach().transpose(axis, -1).contiguous())
        if isinstance(module, SegResNetDS) and module.anisotropic_scales is not None:
            module.anisotropic_scales = [_swapped(scales, axis) for scales in module.anisotropic_scales]
    return network


def _swapped(sizes: Any, axis: int) -> Any:  # noqa: ANN401 - as torch and MONAI keep them
    """Return sizes along D, H, W with one of them swapped with the last; what holds for all three stays."""
    if isinstance(sizes, int | float | str):
        return sizes
    turned = list(sizes)
    turned[axis - 2], turned[-1] = turned[-1], turned[axis - 2]
    return tuple(turned)
