"""The mL1-ACE losses: marginal L1 average calibration error, hard- and soft-binned, and their sum with Dice and CE.

Barfoot et al., "Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation", arXiv 2506.03942;
hard binning first in Barfoot et al., MICCAI 2024, arXiv 2403.06759. Names, arguments and defaults of the two losses are
those of the authors' code. Shapes: B images, C classes, N voxels, M bins.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, get_args

import torch
from monai.losses import DiceCELoss
from torch.nn.functional import interpolate
from torch.nn.modules.loss import _Loss

from .binning import HardGap, Rows, SoftGap
from .deferred import Deferred
from .sums import blocks_of

Activation = Callable[[torch.Tensor], torch.Tensor]
Reduction = Literal["mean", "sum", "none"]

BINS: Final = 20
"""M, that of `service.calibration` (a test compares them): this package imports nothing outside itself."""

_MOST_BINS = 253  # a bin, and two more, fit into a byte
_ROUNDING = 1e-5  # by which a probability may leave [0, 1]
_WITHOUT_RANGE = (torch.uint16, torch.uint32, torch.uint64)  # of which torch finds no minimum


class _L1ACELoss(_Loss):
    """What both losses share: activation, targets, absent classes, weights, reduction."""

    def __init__(  # noqa: PLR0913 - the arguments of the authors' implementation
        self,
        num_bins: int = BINS,
        *,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        reduction: Reduction = "mean",
        weight: Sequence[float] | None = None,
        right: bool = False,
        ignore_empty_classes: bool = True,
        leave_out_empty_classes: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        """Set up the loss.

        Args:
            num_bins: M, at most 253.
            include_background: count class 0.
            to_onehot_y: the target holds labels, (B, 1, ...); else one value per class, (B, C, ...), also soft.
            sigmoid: apply the sigmoid to the input first: every class is a question of its own.
            softmax: apply softmax over the classes first.
            other_act: apply this instead.
            reduction: mean or sum over images and classes, or none: (B, C, 1, ...).
            weight: factor of each counted class, at least 0; the mean is not normalised by it.
            right: close hard bins on the left, [k/M, (k+1)/M), instead of on the right.
            ignore_empty_classes: a class without a voxel in the target of an image contributes 0 there, as in the
                authors' code: it still counts in the mean and dilutes the others.
            leave_out_empty_classes: leave it out of the mean instead.
            ignore_index: label whose voxels do not count; with `to_onehot_y` only.

        Raises:
            ValueError: arguments that exclude each other or lie out of range.
        """
        super().__init__()
        if sigmoid + softmax + (other_act is not None) > 1:
            msg = "sigmoid, softmax and other_act exclude each other: choose one."
            raise ValueError(msg)
        if ignore_index is not None and not to_onehot_y:
            msg = "ignore_index needs labels: set to_onehot_y."
            raise ValueError(msg)
        _reject_out_of_range(num_bins, reduction, weight)
        self.num_bins = num_bins
        self.first = 0 if include_background else 1
        self.to_onehot_y = to_onehot_y
        self.activation = other_act or (torch.sigmoid if sigmoid else _softmax if softmax else None)
        self.reduction = reduction
        self.weight = weight
        self.right = right
        self.ignore_empty_classes = ignore_empty_classes
        self.leave_out_empty_classes = leave_out_empty_classes
        self.ignore_index = ignore_index
        self._deferred = Deferred()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 - MONAI's losses name it so
        """Return the loss, in [0, 1] with reduction "mean" and no weight.

        Args:
            input: (B, C, ...) logits with `sigmoid` or `softmax`, else probabilities; any floating type.
            target: (B, 1, ...) labels with `to_onehot_y`, else (B, C, ...) in [0, 1].

        Raises:
            ValueError: shapes that disagree, values that are not finite, without an activation values outside [0, 1], or
                labels outside 0 .. C-1 other than `ignore_index`. On a GPU it is raised by one of the next calls, or by
                `check`, for reading the values at once would make every step wait for the device.
        """
        with torch.autocast(input.device.type, enabled=False):
            p = input if input.dtype == torch.float64 else input.float()
            p = (self.activation(p) if self.activation else p).flatten(2)
            y, ignored = self._target(p, target)
            self._check(p.detach(), target.flatten(1), ignored)
            p = p[:, self.first :]
            return self._reduced(self._gaps(p, y, ignored), self._present(p, y), input.dim())

    def _gaps(self, p: torch.Tensor, y: Rows, ignored: torch.Tensor | None) -> torch.Tensor:
        """Return the mean gap of each row, (B, C)."""
        raise NotImplementedError

    def check(self) -> None:
        """Wait for a GPU and raise ValueError if the values of an earlier call were out of range; on a CPU the call raised."""
        self._deferred.wait()

    def _check(self, p: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor | None) -> None:
        """Raise ValueError for values out of range, at once on a CPU; on a GPU in one of the next calls."""
        if not p.numel():
            return
        figures = [*p.aminmax()]
        if self.to_onehot_y:
            labels = labels.float() if labels.dtype in _WITHOUT_RANGE else labels
            figures += (labels if ignored is None else labels.masked_fill(ignored, 0)).aminmax()
        read = partial(self._reject_figures, p.shape[1])
        self._deferred.read(torch.stack([figure.to(p.dtype) for figure in figures]), read)

    def _reject_figures(self, classes: int, figures: Sequence[float]) -> None:
        low, high, *of_labels = figures
        self._reject_values(low, high)
        _reject_labels(of_labels, classes)

    def _reject_values(self, low: float, high: float) -> None:
        if not math.isfinite(low) or not math.isfinite(high):
            msg = "The network's output is not finite (NaN or infinite): lower the learning rate or clip gradients."
            raise ValueError(msg)
        if self.activation is None and (low < -_ROUNDING or high > 1 + _ROUNDING):
            msg = f"The input spans {low:.3g} to {high:.3g}; expected probabilities: set softmax or sigmoid."
            raise ValueError(msg)

    def _target(self, p: torch.Tensor, target: torch.Tensor) -> tuple[Rows, torch.Tensor | None]:
        shape = (p.shape[0], 1, p.shape[2]) if self.to_onehot_y else p.shape
        flat = target.flatten(2)
        if flat.shape != shape:
            msg = f"Target of shape {tuple(target.shape)} does not fit: expected {tuple(shape)} with the spatial axes flattened."
            raise ValueError(msg)
        if not self.to_onehot_y:
            return lambda b, c: flat[b, self._of_all(c)].to(p.dtype), None
        labels = flat[:, 0]
        ignored = None if self.ignore_index is None else labels == self.ignore_index

        def y(b: int, c: slice) -> torch.Tensor:
            belongs = p.new_empty((c.stop - c.start, p.shape[2]))
            for row, label in zip(belongs, range(*self._of_all(c).indices(p.shape[1])), strict=True):
                torch.eq(labels[b], label, out=row)
            # A class whose own label is ignored has no voxel that counts: it is absent.
            return belongs if ignored is None else belongs.masked_fill_(ignored[b], 0)

        return y, ignored

    def _of_all(self, counted: slice) -> slice:
        """Return the slice of all classes that a slice of the counted ones is."""
        return slice(counted.start + self.first, counted.stop + self.first)

    def _present(self, p: torch.Tensor, y: Rows) -> torch.Tensor:
        """Return whether any voxel of the target belongs to the class, (B, C)."""
        present = torch.ones(p.shape[:2], dtype=torch.bool, device=p.device)
        if self.ignore_empty_classes:
            for b, c in blocks_of(p):
                present[b, c] = y(b, c).any(dim=1)
        return present

    def _reduced(self, gaps: torch.Tensor, present: torch.Tensor, dimensions: int) -> torch.Tensor:
        losses = torch.where(present, gaps, 0.0)
        if self.weight is not None:
            if len(self.weight) != losses.shape[1]:
                msg = f"{len(self.weight)} weights for {losses.shape[1]} counted classes: expected one per class."
                raise ValueError(msg)
            # Factor by factor: a tensor of them would be copied to a GPU, and the program would wait.
            losses = torch.stack([losses[:, c] * factor for c, factor in enumerate(self.weight)], dim=1)
        if self.reduction == "none":
            return losses.reshape(*losses.shape, *(1 for _ in range(dimensions - 2)))
        if self.reduction == "sum":
            return losses.sum()
        number = present.sum().clamp(min=1) if self.leave_out_empty_classes else losses.numel()
        return losses.sum() / number


def _reject_out_of_range(num_bins: int, reduction: str, weight: Sequence[float] | None) -> None:
    if not 1 <= num_bins <= _MOST_BINS:
        msg = f"num_bins is {num_bins}; expected 1 to {_MOST_BINS}."
        raise ValueError(msg)
    if reduction not in get_args(Reduction):
        msg = f"reduction is {reduction!r}; expected mean, sum or none."
        raise ValueError(msg)
    if weight is not None and min(weight) < 0:
        msg = "weight holds a negative factor; expected at least 0."
        raise ValueError(msg)


def _reject_labels(span: Sequence[float], classes: int) -> None:
    """Raise ValueError if the smallest or the largest label, if there are any, is no class."""
    if span and not (span[0] >= 0 and span[1] < classes):
        msg = f"Labels span {span[0]:g} to {span[1]:g}; expected 0 to {classes - 1} for {classes} classes, or ignore_index."
        raise ValueError(msg)


class HardL1ACELoss(_L1ACELoss):
    """mL1-ACE with hard bins: ``mean_bc mean_k |P_bck - Y_bck|`` over the filled bins k of image b and class c.

    Bins are right-closed, (k/M, (k+1)/M], as in `service.calibration`, unless `right`.
    """

    def _gaps(self, p: torch.Tensor, y: Rows, ignored: torch.Tensor | None) -> torch.Tensor:
        return _differentiable(HardGap.apply(p, y, ignored, self.num_bins, self.right))


class SoftL1ACELoss(_L1ACELoss):
    """mL1-ACE with soft bins: as `HardL1ACELoss`, each voxel shared between its two nearest bins.

    A bin that collected less than 0.01 voxels counts as empty. Soft bins have no edges: `right` changes nothing.
    """

    def _gaps(self, p: torch.Tensor, y: Rows, ignored: torch.Tensor | None) -> torch.Tensor:
        return _differentiable(SoftGap.apply(p, y, ignored, self.num_bins))


def _differentiable(gaps: object) -> torch.Tensor:
    assert isinstance(gaps, torch.Tensor)  # noqa: S101 - torch does not type Function.apply
    return gaps


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=1)


class ACEDiceCELoss(_Loss):
    """Dice + cross-entropy + `ace_weight` times mL1-ACE, on logits (B, C, ...) and labels (B, 1, ...)."""

    def __init__(self, binning: Literal["hard", "soft"], ace_weight: float) -> None:
        """Set up the three terms.

        Args:
            binning: which mL1-ACE.
            ace_weight: its weight beside 1 for Dice and 1 for cross-entropy; 0 leaves Dice + CE alone. It may be
                set anew between steps.

        Raises:
            ValueError: there is no such binning.
        """
        super().__init__()
        losses = {"hard": HardL1ACELoss, "soft": SoftL1ACELoss}
        if binning not in losses:
            msg = f"binning is {binning!r}; expected hard or soft."
            raise ValueError(msg)
        self.dice_ce = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5)
        self.ace = losses[binning](softmax=True, to_onehot_y=True)
        self.ace_weight = ace_weight

    def check(self) -> None:
        """Raise ValueError if the values of an earlier call were out of range, as the losses' own `check`."""
        self.ace.check()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the terms, a scalar; fits into MONAI's `DeepSupervisionLoss`."""
        return self.terms(logits, labels)["total"]

    def terms(self, logits: torch.Tensor | Sequence[torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the terms ``dice_ce`` and ``ace`` and their weighted sum ``total``, each a scalar.

        Args:
            logits: (B, C, ...), or one such tensor for each scale of a deeply supervised network, finest first: their
                losses count 1, 1/2, 1/4 ..., each at its own scale, as in MONAI's `DeepSupervisionLoss`.
            labels: (B, 1, ...) at the finest scale, 0 .. C-1: for others the Dice term fails first, with MONAI's error.
        """
        scales = [logits] if isinstance(logits, torch.Tensor) else logits
        terms = [self._terms_at_one_scale(scale, labels) for scale in scales]
        return {name: sum((0.5**i * term[name] for i, term in enumerate(terms)), torch.zeros(())) for name in terms[0]}

    def _terms_at_one_scale(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if labels.shape[2:] != logits.shape[2:]:
            labels = interpolate(labels.float(), size=logits.shape[2:], mode="nearest-exact")
        dice_ce = self.dice_ce(logits.float(), labels)
        ace = self.ace(logits, labels)
        return {"total": dice_ce + self.ace_weight * ace, "dice_ce": dice_ce, "ace": ace}
