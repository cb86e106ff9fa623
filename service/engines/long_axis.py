"""Transpose a network so that its last axis is a long one: on a CPU, convolutions are vectorised along the last axis."""

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
"""Layers with a size along each axis, and the attributes that hold it."""

_ISOTROPIC: Final = (
    nn.GroupNorm,
    nn.InstanceNorm3d,
    nn.BatchNorm3d,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Dropout,
    nn.Identity,
)
"""Layers that treat all axes alike."""

_SHORT: Final = 48
"""Rows up to this length do not fill the processor's vectors."""


class LongAxisLast(nn.Module):
    """Computes a network with the last axis of the window, W, swapped with D or H."""

    def __init__(self, network: nn.Module, axis: int) -> None:
        """Keep a transposed copy of a network that is `transposable`.

        Args:
            network: in evaluation mode.
            axis: 2 or 3: axis of the window (1, channels, D, H, W) that is swapped with the last one.
        """
        super().__init__()
        self.axis = axis
        self._network = _transposed(network, axis)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, C, D, H, W) of a window (1, channels, D, H, W)."""
        logits: torch.Tensor = self._network(window.transpose(self.axis, -1))
        return logits.transpose(self.axis, -1)


def with_long_axis_last(network: nn.Module, window: torch.Tensor) -> nn.Module:
    """Return the network transposed if that pays for windows of this size, otherwise the network itself."""
    shape = window.shape
    longest = max((3, 2), key=lambda axis: shape[axis])
    pays = shape[-1] <= _SHORT and shape[longest] >= 2 * shape[-1]
    return LongAxisLast(network, longest) if pays and transposable(network) else network


def transposable(network: nn.Module) -> bool:
    """Return whether the network consists only of layers that this module knows how to transpose."""
    layers = [module for module in network.modules() if not list(module.children())]
    return all(isinstance(layer, (*_SIZED, *_ISOTROPIC)) for layer in layers)


def _transposed(network: nn.Module, axis: int) -> nn.Module:
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
    """Swap one of the sizes along D, H, W with the last; a single size for all axes stays unchanged."""
    if isinstance(sizes, int | float | str):
        return sizes
    swapped = list(sizes)
    swapped[axis - 2], swapped[-1] = swapped[-1], swapped[axis - 2]
    return tuple(swapped)
