"""Group normalisation written so that OpenVINO keeps the convolutions' memory layout.

OpenVINO carries out a GroupNorm as reshape, MVN, reshape, for which each tensor is laid out anew, before and after.
"""

import torch
from torch import nn
from torch.nn.functional import avg_pool3d


class PooledGroupNorm(nn.Module):
    """The function of a `torch.nn.GroupNorm` for one window, (1, C, D, H, W).

    A group's variance is the mean of its channels' variances and of their means' squared distances from its own mean.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Take over groups, weights and epsilon."""
        super().__init__()
        self._groups, self._eps = norm.num_groups, norm.eps
        ones = torch.ones(norm.num_channels)
        self._weight, self._bias = (
            nn.Parameter(fill if found is None else found.detach(), requires_grad=False)
            for fill, found in ((ones, norm.weight), (0 * ones, norm.bias))
        )

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return (1, C, D, H, W): each group with a mean of 0 and a variance of 1, then scaled and shifted."""
        mean = _mean(window)
        variance = _mean((window - mean).square())
        of_group = self._over_groups(mean)
        variance = self._over_groups(variance + (mean - of_group).square())
        scale = torch.rsqrt(variance + self._eps) * self._weight.view(1, -1, 1, 1, 1)
        return (window - of_group) * scale + self._bias.view(1, -1, 1, 1, 1)

    def _over_groups(self, values: torch.Tensor) -> torch.Tensor:
        """Return each channel's group's mean of one value for each channel, (1, C, 1, 1, 1) both."""
        of_groups = values.view(self._groups, -1)
        return of_groups.mean(dim=1, keepdim=True).expand_as(of_groups).reshape(values.shape)


def _mean(window: torch.Tensor) -> torch.Tensor:
    """Return the mean of each channel, (1, C, 1, 1, 1).

    One axis after the other, as pooling: a reduction over all adds up some million float32 numbers in a row and loses digits.
    """
    d, h, w = (int(n) for n in window.shape[2:])
    return avg_pool3d(avg_pool3d(avg_pool3d(window, (1, 1, w)), (1, h, 1)), (d, 1, 1))
