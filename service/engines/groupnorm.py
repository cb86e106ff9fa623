"""Group normalisation in a form for which OpenVINO keeps the memory layout of the convolutions.

OpenVINO runs GroupNorm as reshape, MVN, reshape, and reorders each tensor in memory before and after.
"""

import torch
from torch import nn
from torch.nn.functional import avg_pool3d


class PooledGroupNorm(nn.Module):
    """Computes a `torch.nn.GroupNorm` for one window, (1, C, D, H, W).

    The variance of a group is the mean over its channels of the channel's variance plus the squared distance of the
    channel's mean from the group's mean.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Take groups, weights and epsilon from a layer."""
        super().__init__()
        self._groups, self._eps = norm.num_groups, norm.eps
        ones = torch.ones(norm.num_channels)
        self._weight, self._bias = (
            nn.Parameter(default if parameter is None else parameter.detach(), requires_grad=False)
            for default, parameter in ((ones, norm.weight), (0 * ones, norm.bias))
        )

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Normalise each group of a window (1, C, D, H, W) to mean 0 and variance 1, then scale and shift its channels."""
        mean = _mean(window)
        variance = _mean((window - mean).square())
        of_group = self._over_groups(mean)
        variance = self._over_groups(variance + (mean - of_group).square())
        scale = torch.rsqrt(variance + self._eps) * self._weight.view(1, -1, 1, 1, 1)
        return (window - of_group) * scale + self._bias.view(1, -1, 1, 1, 1)

    def _over_groups(self, values: torch.Tensor) -> torch.Tensor:
        """Average values of channels, (1, C, 1, 1, 1), over the channels of each group; same shape."""
        grouped = values.view(self._groups, -1)
        return grouped.mean(dim=1, keepdim=True).expand_as(grouped).reshape(values.shape)


def _mean(window: torch.Tensor) -> torch.Tensor:
    """Return the mean of each channel, (1, C, 1, 1, 1).

    Axes are pooled one after another: a single reduction over millions of float32 values loses digits.
    """
    d, h, w = (int(n) for n in window.shape[2:])
    return avg_pool3d(avg_pool3d(avg_pool3d(window, (1, 1, w)), (1, h, 1)), (d, 1, 1))
