"""The mL1-ACE losses: marginal L1 average calibration error, hard- and soft-binned, and their sum with Dice and CE.

Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation", arXiv 2506.03942;
hard binning first in Barfoot et al., MICCAI 2024, arXiv 2403.06759.
Shapes: B images, C classes, N voxels, M bins.
"""

from collections.abc import Callable
from typing import Final, Literal

import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.functional import one_hot

from service.calibration.histogram import BINS

EMPTY_WEIGHT: Final = 0.01
"""A soft bin that collected less weight than this counts as empty."""

BinnedGap = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(p, y, bins) of shapes (B, C, N), (B, C, N) -> |mean p - mean y| per bin, (B, C, M), NaN in an empty bin."""


def hard_gap(p: torch.Tensor, y: torch.Tensor, bins: int) -> torch.Tensor:
    """Return ``|P_k - Y_k|`` of each class and bin, (B, C, M); each voxel belongs to one bin.

    Bins are right-closed as in `service.calibration.histogram.bin_index`. Gradients flow through the mean of p in a
    bin, not through the membership: dL/dp = sign(P_k - Y_k) / (K n_k) for every voxel of bin k, K bins being filled.

    Args:
        p: (B, C, N) probabilities.
        y: (B, C, N) targets in [0, 1], same dtype.
        bins: number of bins M.
    """
    index = (torch.ceil(p.detach().float() * bins).long() - 1).clamp(0, bins - 1)
    filled = p.new_zeros(*p.shape[:2], bins)
    count = filled.scatter_add(2, index, torch.ones_like(p))
    gap = (filled.scatter_add(2, index, p - y) / count.clamp(min=1)).abs()
    return torch.where(count == 0, torch.nan, gap)


def soft_gap(p: torch.Tensor, y: torch.Tensor, bins: int) -> torch.Tensor:
    """Return ``|P_k - Y_k|`` of each class and bin, (B, C, M); each voxel is shared by the two nearest bins.

    A voxel between the centres of bins l and r = l + 1 gives them the weights 1 - w and w, with w its distance from
    the centre of l in bin widths; outside the outermost centres it belongs to the outermost bin alone. Gradients flow
    through the weights as well.

    Args:
        p: (B, C, N) probabilities.
        y: (B, C, N) targets in [0, 1], same dtype.
        bins: number of bins M.
    """
    position = p * bins - 0.5
    left = position.detach().floor().long().clamp(0, bins - 1)
    right = (left + 1).clamp(max=bins - 1)
    w = (position - left).clamp(0, 1)
    empty = p.new_zeros(*p.shape[:2], bins)
    weight = empty.scatter_add(2, left, 1 - w).scatter_add(2, right, w)
    total = empty.scatter_add(2, left, (1 - w) * (p - y)).scatter_add(2, right, w * (p - y))
    gap = (total / weight.clamp(min=EMPTY_WEIGHT)).abs()
    return torch.where(weight < EMPTY_WEIGHT, torch.nan, gap)


class _L1ACELoss(nn.Module):
    """Mean over images and classes of the mean gap over filled bins."""

    def __init__(
        self,
        gap: BinnedGap,
        num_bins: int,
        *,
        softmax: bool,
        to_onehot_y: bool,
        include_background: bool,
        ignore_empty_classes: bool,
    ) -> None:
        super().__init__()
        self.gap = gap
        self.num_bins = num_bins
        self.softmax = softmax
        self.to_onehot_y = to_onehot_y
        self.include_background = include_background
        self.ignore_empty_classes = ignore_empty_classes

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 - MONAI's losses name it so
        """Return the loss, a scalar in [0, 1].

        Args:
            input: (B, C, ...) logits with `softmax`, else probabilities.
            target: (B, 1, ...) labels with `to_onehot_y`, else (B, C, ...) one-hot.

        Raises:
            ValueError: shapes that disagree, or values that are not finite.
        """
        # Sums over 10^5 voxels need float64: float32 loses up to a quarter of a small gap, and its sign.
        p = input.double().softmax(dim=1) if self.softmax else input.double()
        if not torch.isfinite(p).all():
            msg = "The network's output is not finite (NaN or infinite): lower the learning rate or clip gradients."
            raise ValueError(msg)
        y = one_hot(target[:, 0].long(), p.shape[1]).movedim(-1, 1) if self.to_onehot_y else target
        if y.shape != p.shape:
            msg = f"Target of shape {tuple(y.shape)} does not fit the prediction of shape {tuple(p.shape)}."
            raise ValueError(msg)
        first = 0 if self.include_background else 1
        p, y = p.flatten(2)[:, first:], y.flatten(2)[:, first:].to(p.dtype)
        gap = self.gap(p, y, self.num_bins)
        filled = ~gap.detach().isnan()
        loss = torch.where(filled, gap, 0.0).sum(dim=2) / filled.sum(dim=2)
        if self.ignore_empty_classes:
            # As the reference does: an absent class contributes 0 and still counts in the mean.
            loss = loss * (y.sum(dim=2) > 0)
        return loss.mean().float()


class HardL1ACELoss(_L1ACELoss):
    """mL1-ACE with hard bins: ``mean_bc mean_k |P_bck - Y_bck|`` over the filled bins k of image b and class c."""

    def __init__(
        self,
        num_bins: int = BINS,
        *,
        softmax: bool = False,
        to_onehot_y: bool = False,
        include_background: bool = True,
        ignore_empty_classes: bool = True,
    ) -> None:
        """Set up the loss; names and defaults are those of the authors' implementation.

        Args:
            num_bins: M.
            softmax: apply softmax over the classes first.
            to_onehot_y: the target holds labels.
            include_background: count class 0.
            ignore_empty_classes: a class without a voxel in the target contributes 0.
        """
        super().__init__(
            hard_gap,
            num_bins,
            softmax=softmax,
            to_onehot_y=to_onehot_y,
            include_background=include_background,
            ignore_empty_classes=ignore_empty_classes,
        )


class SoftL1ACELoss(_L1ACELoss):
    """mL1-ACE with soft bins: as `HardL1ACELoss`, each voxel shared between its two nearest bins."""

    def __init__(
        self,
        num_bins: int = BINS,
        *,
        softmax: bool = False,
        to_onehot_y: bool = False,
        include_background: bool = True,
        ignore_empty_classes: bool = True,
    ) -> None:
        """Set up the loss; arguments as `HardL1ACELoss`."""
        super().__init__(
            soft_gap,
            num_bins,
            softmax=softmax,
            to_onehot_y=to_onehot_y,
            include_background=include_background,
            ignore_empty_classes=ignore_empty_classes,
        )


class ACEDiceCELoss(nn.Module):
    """Dice + cross-entropy + `ace_weight` times mL1-ACE, on logits (B, C, ...) and labels (B, 1, ...)."""

    def __init__(self, binning: Literal["hard", "soft"], ace_weight: float) -> None:
        """Set up the three terms.

        Args:
            binning: which mL1-ACE.
            ace_weight: its weight beside 1 for Dice and 1 for cross-entropy; 0 leaves Dice + CE alone.
        """
        super().__init__()
        self.dice_ce = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5)
        self.ace = {"hard": HardL1ACELoss, "soft": SoftL1ACELoss}[binning](softmax=True, to_onehot_y=True)
        self.ace_weight = ace_weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the terms ``dice_ce`` and ``ace`` and their weighted sum ``total``, each a scalar."""
        dice_ce = self.dice_ce(logits.float(), labels)
        ace = self.ace(logits, labels)
        return {"total": dice_ce + self.ace_weight * ace, "dice_ce": dice_ce, "ace": ace}
