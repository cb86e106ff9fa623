"""Binned calibration gaps with their gradients: the core of the mL1-ACE losses, one pass and little memory.

For row (b, c) and bin k: n_k voxels (soft: their weight), D_k = sum of p - y over them, gap |D_k| / n_k. The loss of a
row is the mean gap over its K filled bins. Rows are worked off one after the other, on a GPU several at once. Beside p,
which softmax keeps anyway, one byte a voxel is kept for the backward pass, where the gradient is a look-up by bin.

Sums are float64 (`sums`): float32 loses up to a quarter of a small gap at 96^3 voxels, and with it the sign of the
gradient. On a GPU nothing here waits for the device.
Equations: Barfoot et al., arXiv 2506.03942, section 2. Shapes: B images, C classes, N voxels, M bins.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.autograd.function import once_differentiable

from .sums import BinSums, blocks_of

EMPTY_WEIGHT: Final = 0.01
"""A soft bin that collected less weight than this counts as empty."""

Rows = Callable[[int, slice], torch.Tensor]
"""(b, classes) -> y of these rows, (K, N), 0 where the class is not."""


class HardGap(torch.autograd.Function):
    """(B, C, N) -> (B, C): mean over filled bins of ``|D_k| / n_k``, each voxel in one bin.

    dL/dp_i = sign(D_k) / (K n_k) for every voxel of bin k; membership in a bin has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, p: torch.Tensor, y: Rows, ignored: torch.Tensor | None, bins: int, right: bool
    ) -> torch.Tensor:
        """Return the loss of each row.

        Args:
            ctx: of autograd.
            p: (B, C, N) probabilities.
            y: targets by row.
            ignored: (B, N) voxels that do not count, or None.
            bins: M.
            right: bins closed on the left, [k/M, (k+1)/M), instead of the right.
        """
        losses, slope = p.new_zeros(p.shape[:2]), p.new_zeros((*p.shape[:2], bins + 1))
        index = torch.empty(p.shape, dtype=torch.uint8, device=p.device)
        for b, c in blocks_of(p):
            row = hard_index(p[b, c], bins, right=right)
            if ignored is not None:
                row.masked_fill_(ignored[b], bins)
            index[b, c] = row
            sums = BinSums(row, bins + 1)
            d = sums.of((p[b, c] - y(b, c)).double())
            losses[b, c], slope[b, c, :bins] = _mean_gap(sums.count()[:, :bins], d[:, :bins], least=1)
        ctx.save_for_backward(index, slope)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of p: a look-up by bin."""
        index, slope = ctx.saved_tensors
        table = slope * grad[..., None]
        out = torch.empty(index.shape, dtype=slope.dtype, device=index.device)
        for b, c in blocks_of(index):
            torch.index_select(table[b, c].flatten(), 0, _entries(index[b, c], table.shape[-1]), out=out[b, c].view(-1))
        return out, None, None, None, None


class SoftGap(torch.autograd.Function):
    """(B, C, N) -> (B, C): as `HardGap`, each voxel shared between the bins l and r = l + 1 of the nearest centres.

    With w the distance from the centre of l in bin widths, l receives 1 - w and r receives w; outside the outermost
    centres the outermost bin receives all. With A_m = sign(D_m) / (K n_m) and G_m = D_m / n_m,
    dL/dp_i = (1 - w) A_l + w A_r + M [A_r (p_i - y_i - G_r) - A_l (p_i - y_i - G_l)]; the bracket is the gradient of the
    membership, absent outside the outermost centres.
    """

    @staticmethod
    def forward(ctx: Any, p: torch.Tensor, y: Rows, ignored: torch.Tensor | None, bins: int) -> torch.Tensor:
        """Return the loss of each row; arguments as `HardGap`."""
        losses, tables = p.new_zeros(p.shape[:2]), p.new_zeros((*p.shape[:2], 3, bins + 2))
        index = torch.empty(p.shape, dtype=torch.uint8, device=p.device)
        for b, c in blocks_of(p):
            row, w = soft_index(p[b, c], bins)
            if ignored is not None:
                row.masked_fill_(ignored[b], bins + 1)
            index[b, c] = row
            sums, w = BinSums(row, bins + 2), w.double()
            n = _share(sums.count(), sums.of(w))
            d = (p[b, c] - y(b, c)).double()
            total = _share(sums.of(d), sums.of(w.mul_(d)))
            losses[b, c], slope = _mean_gap(n, total, least=EMPTY_WEIGHT)
            tables[b, c] = _soft_tables(slope, total / n.clamp(min=EMPTY_WEIGHT), bins)
        ctx.y, ctx.bins = y, bins
        ctx.save_for_backward(p, index, tables)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of p: three look-ups by bin."""
        p, index, tables = ctx.saved_tensors
        out = torch.empty_like(p)
        for b, c in blocks_of(p):
            entries = _entries(index[b, c], tables.shape[-1])
            scaled = (tables[b, c] * grad[b, c, None, None]).movedim(1, 0)
            slope, step, drift = (table.flatten().index_select(0, entries).view_as(p[b, c]) for table in scaled)
            w = p[b, c].mul(ctx.bins).add_(0.5).sub_(index[b, c]).clamp_(0, 1)
            w.add_(p[b, c] - ctx.y(b, c), alpha=ctx.bins)
            torch.addcmul(slope, w, step, out=out[b, c])
            out[b, c].sub_(drift)
        return out, None, None, None


def hard_index(row: torch.Tensor, bins: int, *, right: bool = False) -> torch.Tensor:
    """Return the bin 0 .. M-1 of each probability, (N,) uint8, by the rule of `service.calibration.histogram.bin_index`."""
    scaled = row.float() * bins
    scaled = scaled.floor_() if right else scaled.ceil_().sub_(1)
    return scaled.clamp_(0, bins - 1).to(torch.uint8)


def soft_index(row: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return l + 1 of each probability, (N,) uint8 in 0 .. M, and w, (N,) in [0, 1].

    0 stands for below the first centre (all weight to the first bin), M for beyond the last (all to the last).
    """
    position = row * bins + 0.5
    index = position.floor().clamp_(0, bins)
    return index.to(torch.uint8), position.sub_(index).clamp_(0, 1)


def _entries(index: torch.Tensor, width: int) -> torch.Tensor:
    """Return where the entry of each voxel lies in the flat tables of K rows, (K N) int32."""
    rows = torch.arange(0, len(index) * width, width, dtype=torch.int32, device=index.device)
    return torch.add(index, rows[:, None]).flatten() if len(index) > 1 else index[0].int()


def _share(whole: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the sums per bin, (K, M) float64, of values that are each given to l and r.

    Args:
        whole: (K, M + 2) sums of the values by l + 1. Entry j holds the voxels between the centres of bins j - 1 and j;
            entries 0 and M have one bin only.
        right: the same of the shares that r receives.
    """
    bins = whole.shape[1] - 2
    left = whole[:, 1 : bins + 1] - right[:, 1 : bins + 1]
    left[:, -1] = whole[:, bins]
    left[:, 1:] += right[:, 1:bins]
    left[:, 0] += whole[:, 0]
    return left


def _mean_gap(n: torch.Tensor, d: torch.Tensor, *, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean gap of each row over the filled bins, (K,), and the slope ``sign(D_k) / (K n_k)`` of each bin."""
    filled = n >= least
    number = filled.sum(dim=1, keepdim=True).clamp(min=1)
    inverse = torch.where(filled, 1 / n.clamp(min=least), 0.0)
    return (d.abs() * inverse).sum(dim=1) / number[:, 0], d.sign() * inverse / number


def _soft_tables(slope: torch.Tensor, gap: torch.Tensor, bins: int) -> torch.Tensor:
    """Return, by l + 1, the slope A_l, the step A_r - A_l and M times the step of A G, (K, 3, M + 2)."""
    tables = slope.new_zeros((len(slope), 3, bins + 2))
    tables[:, 0, 1 : bins + 1] = slope
    tables[:, 0, 0] = slope[:, 0]
    tables[:, 1, 1:bins] = slope.diff()
    tables[:, 2, 1:bins] = (slope * gap).diff() * bins
    return tables
