"""The losses against a literal transcription of the paper's equations, loop by loop in float64.

Edges and weights as in the authors' code (cai4cai/Average-Calibration-Losses): linspace(0, 1 + eps, M + 1).
"""

import re
from collections.abc import Callable
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode

from model_training.losses import deferred, sums
from model_training.losses.ace import ACEDiceCELoss, HardL1ACELoss, SoftL1ACELoss
from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import ace
from tests.cuda_waits import no_waiting

EPS = 2.0**-23
EMPTY = 0.01
"""A soft bin of less weight than this is empty."""

Reference = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
Loss = type[HardL1ACELoss] | type[SoftL1ACELoss]


def hard_reference(p: torch.Tensor, y: torch.Tensor, bins: int) -> torch.Tensor:
    """Return ``mean_k |P_k - Y_k|`` of one class over the bins ``e_(k-1) < p <= e_k`` that are not empty."""
    edges = [k * (1 + EPS) / bins for k in range(bins + 1)]
    gaps = []
    for low, high in pairwise(edges):
        inside = (p <= high) & ((p > low) | (low == 0))
        if inside.any():
            gaps.append((p[inside].mean() - y[inside].mean()).abs())
    return torch.stack(gaps).mean()


def soft_reference(p: torch.Tensor, y: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the same over triangular weights: 1 at the centre of a bin, 0 at its neighbours', 1 beyond the outermost."""
    width = (1 + EPS) / bins
    gaps = []
    for k in range(bins):
        distance = (p - (k + 0.5) * width) / width
        w = (1 - distance.abs()).clamp(min=0)
        if k == 0:
            w = torch.where(distance < 0, 1.0, w)
        if k == bins - 1:
            w = torch.where(distance > 0, 1.0, w)
        n = w.sum()
        if n >= EMPTY:
            gaps.append(((w * p).sum() / n - (w * y).sum() / n).abs())
    return torch.stack(gaps).mean()


def reference_loss(
    one_class: Reference, p: torch.Tensor, y: torch.Tensor, *, bins: int, ignore_empty: bool
) -> torch.Tensor:
    """Return the mean over images and classes; an ignored class contributes 0 and still counts."""
    terms = [
        one_class(p[b, c], y[b, c], bins) * (0.0 if ignore_empty and not y[b, c].any() else 1.0)
        for b, c in product(range(p.shape[0]), range(p.shape[1]))
    ]
    return torch.stack(terms).mean()


def random_batch(seed: int, *, classes: int = 4, present: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (2, C, 5, 6, 7) and labels (2, 1, 5, 6, 7) that hold the first so many classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 5, 6, 7, generator=generator)
    return logits, torch.randint(present, (2, 1, 5, 6, 7), generator=generator)


BOTH = pytest.mark.parametrize(
    ("loss", "reference"), [(HardL1ACELoss, hard_reference), (SoftL1ACELoss, soft_reference)], ids=["hard", "soft"]
)
EITHER = pytest.mark.parametrize("loss", [HardL1ACELoss, SoftL1ACELoss], ids=["hard", "soft"])


@BOTH
@pytest.mark.parametrize("bins", [20, 7])
@pytest.mark.parametrize("ignore_empty", [True, False], ids=["ignore absent", "count absent"])
def test_value_and_gradient_follow_the_equations(
    loss: Loss,
    reference: Reference,
    bins: int,
    ignore_empty: bool,  # noqa: FBT001 - parametrised
) -> None:
    """Loss and gradient with respect to the logits equal the transcription's; one class of four is absent."""
    logits, labels = random_batch(1, present=3)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    y = one_hot(labels[:, 0], 4).movedim(-1, 1).double()

    value = loss(bins, softmax=True, to_onehot_y=True, ignore_empty_classes=ignore_empty)(ours, labels)
    expected = reference_loss(
        reference, theirs.softmax(dim=1).flatten(2), y.flatten(2), bins=bins, ignore_empty=ignore_empty
    )
    value.backward()
    expected.backward()

    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert relative_error(ours.grad, theirs.grad) < 1e-4


@BOTH
def test_bins_at_their_edges(loss: Loss, reference: Reference) -> None:
    """Probabilities 0, 1 and every k/20 fall where the equations put them."""
    p = torch.cat([torch.arange(21) / 20, torch.arange(40) / 40])[None, None]
    y = (torch.arange(61) % 3 == 0).float()[None, None]

    value = loss()(p, y)

    expected = reference_loss(reference, p.double(), y.double(), bins=20, ignore_empty=True)
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("present", [4, 2])
def test_hard_loss_is_the_mean_ace_of_the_histograms(present: int) -> None:
    """The loss is the ACE that the card reports, averaged over images and classes, absent ones as 0 or as they are."""
    logits, labels = random_batch(2, present=present)
    probs = logits.double().softmax(dim=1).float().numpy()
    scores = np.stack(
        [
            ace(ReliabilityHistogram.from_probabilities(image, label[0]), include_absent=True)
            for image, label in zip(probs, labels.numpy(), strict=True)
        ]
    )

    ignored = HardL1ACELoss(softmax=True, to_onehot_y=True)(logits, labels).item()
    counted = HardL1ACELoss(softmax=True, to_onehot_y=True, ignore_empty_classes=False)(logits, labels).item()

    assert ignored == pytest.approx(scores[:, :present].sum() / scores.size, abs=1e-6)
    assert counted == pytest.approx(scores.mean(), abs=1e-6)


def test_hard_loss_of_four_voxels() -> None:
    """Gaps 0.25 in bin 4 (2 voxels) and 0.25 in bin 14 (2 voxels); the gradient is the gap's sign / (2 bins * 2)."""
    p = torch.tensor([[[0.25, 0.25, 0.75, 0.75]]], requires_grad=True)
    y = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])

    value = HardL1ACELoss()(p, y)
    value.backward()

    assert value.item() == 0.25
    assert p.grad is not None
    assert p.grad.flatten().tolist() == [-0.25, -0.25, 0.25, 0.25]


def test_soft_loss_of_two_voxels() -> None:
    """With 2 bins p = 0.375 gives 3/4 to the lower and 1/4 to the upper, p = 0.75 all to the upper: gaps 3/8 and 1/8.

    Upper bin: (1/4 * 3/8 + 1 * (3/4 - 1)) / (1/4 + 1) = -1/8.
    """
    p, y = torch.tensor([[[0.375, 0.75]]]), torch.tensor([[[0.0, 1.0]]])

    assert SoftL1ACELoss(2)(p, y).item() == pytest.approx(1 / 4)


def test_soft_loss_has_the_gradient_of_its_value() -> None:
    """Finite differences confirm the gradient, through values and memberships, away from kinks."""
    position = torch.tensor([0.3, 0.6, 0.8, 1.2, 1.7, 2.4, 2.7, 3.3, 3.6, 4.2, 4.4, 4.7], dtype=torch.float64)
    p = (position / 5).view(1, 2, 6).requires_grad_()
    y = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1], dtype=torch.float64).view(1, 2, 6)
    loss = SoftL1ACELoss(5, reduction="none", ignore_empty_classes=False)

    assert torch.autograd.gradcheck(lambda p: loss(p, y), (p,))


def test_hard_loss_has_the_gradient_of_its_value() -> None:
    """Finite differences confirm it for double logits through softmax, away from the edges of the bins."""
    logits = torch.tensor([[0.3, -0.7, 1.1, 0.2], [-0.4, 0.9, 0.1, -1.3]], dtype=torch.float64)[None].requires_grad_()
    labels = torch.tensor([[[0, 1, 1, 0]]])
    edges = logits.softmax(dim=1) * 5
    assert ((edges - edges.round()).abs() > 1e-3).all()
    loss = HardL1ACELoss(5, softmax=True, to_onehot_y=True, reduction="none")

    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits,))


@EITHER
def test_empty_bins_do_not_lower_the_mean(loss: Loss) -> None:
    """Two voxels fill two of 20 bins with gaps of 0.025; the other 18 are left out."""
    p = torch.tensor([[[0.025, 0.975]]])
    y = torch.tensor([[[0.0, 1.0]]])

    assert loss()(p, y).item() == pytest.approx(0.025)


def test_a_soft_bin_of_less_than_a_hundredth_of_a_voxel_is_empty() -> None:
    """With 2 bins a voxel at 0.2525 lends 0.005 to the upper bin, whose gap 0.2525 does not count; one at 0.26 does.

    A second voxel at 0.25 with y = 1 moves the lower bin's gap alone.
    """
    y = torch.tensor([[[0.0, 1.0]]])

    def value(p: float) -> float:
        return float(SoftL1ACELoss(2)(torch.tensor([[[p, 0.25]]]), y))

    lower = abs((0.995 * 0.2525 + 0.25 - 1) / 1.995)
    assert value(0.2525) == pytest.approx(lower)
    lower = abs((0.98 * 0.26 + 0.25 - 1) / 1.98)
    assert value(0.26) == pytest.approx((lower + 0.26) / 2)


@EITHER
def test_gradients_are_finite_where_bins_are_empty(loss: Loss) -> None:
    """Empty bins, absent classes and perfect predictions leave no NaN in the gradient."""
    logits = torch.zeros(1, 3, 2, 2, 2).requires_grad_()
    with torch.no_grad():
        logits[:, 0, 0] = 100.0

    loss(softmax=True, to_onehot_y=True)(logits, torch.zeros(1, 1, 2, 2, 2)).backward()

    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@EITHER
def test_an_absent_class_contributes_zero(loss: Loss) -> None:
    """With p = 0.5 everywhere and labels of class 0 alone, class 1 adds 0 or its gap 0.5 to the mean of two."""
    p = torch.full((1, 2, 4), 0.5)
    y = torch.tensor([1.0, 0.0]).view(1, 2, 1).expand(1, 2, 4)

    assert loss()(p, y).item() == pytest.approx(0.25)
    assert loss(ignore_empty_classes=False)(p, y).item() == pytest.approx(0.5)
    assert loss(include_background=False)(p, y).item() == 0.0


@EITHER
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(loss: Loss, value: float) -> None:
    """A network that diverged is reported as such, with the remedy, before it reaches the bins."""
    logits, labels = random_batch(3)
    logits[0, 1, 2, 3, 4] = value

    with pytest.raises(ValueError, match=r"output is not finite.*lower the learning rate or clip gradients"):
        loss(softmax=True, to_onehot_y=True)(logits, labels)


@EITHER
@given(st.text(max_size=8).filter(lambda text: text not in {"mean", "sum", "none"}))
@example("average")
def test_an_unknown_reduction_is_refused(loss: Loss, reduction: str) -> None:
    """A typing mistake does not become a mean."""
    with pytest.raises(ValueError, match=r"^reduction is .*; expected mean, sum or none\.$"):
        loss(reduction=reduction)  # type: ignore[arg-type]


@given(st.text(max_size=8).filter(lambda text: text not in {"hard", "soft"}))
@example("sft")
def test_an_unknown_binning_is_refused(binning: str) -> None:
    """The message names both."""
    with pytest.raises(ValueError, match=r"^binning is .*; expected hard or soft\.$"):
        ACEDiceCELoss(binning, 1.0)  # type: ignore[arg-type]


@EITHER
@given(st.floats(-9, 9), st.integers(0, 11), st.sampled_from([torch.float16, torch.float32, torch.float64]))
@example(1 + 2**-23, 0, torch.float32)
@example(-(2.0**-23), 0, torch.float32)
@example(-0.001, 5, torch.float64)
def test_logits_without_an_activation_are_refused(loss: Loss, value: float, place: int, dtype: torch.dtype) -> None:
    """A value outside [0, 1] by more than rounding is an error that names the remedy; with one the same input is taken."""
    p = torch.full((1, 2, 6), 0.5, dtype=dtype)
    p.view(-1)[place] = value
    y = torch.ones(1, 2, 6)
    low, high = float(p.min()), float(p.max())
    if low >= -1e-6 and high <= 1 + 1e-6:
        assert loss()(p, y) >= 0
    elif low < -2e-5 or high > 1 + 2e-5:
        with pytest.raises(ValueError, match=re.escape(f"The input spans {low:.3g} to {high:.3g}; expected prob")):
            loss()(p, y)
    assert loss(softmax=True)(p, y) >= 0
    assert loss(sigmoid=True)(p, y) >= 0


@EITHER
@given(
    st.integers(-3, 300),
    st.integers(0, 11),
    st.sampled_from([None, -1, 2, 255]),
    st.sampled_from([torch.uint8, torch.uint16, torch.int32, torch.int64, torch.float32]),
)
def test_labels_that_are_no_class_are_refused(
    loss: Loss, label: int, place: int, ignore_index: int | None, dtype: torch.dtype
) -> None:
    """A label outside 0 .. C-1 is an error unless it is the one to ignore, in any type of label."""
    unsigned = dtype in (torch.uint8, torch.uint16)
    label %= 256 if unsigned else 1000
    labels = torch.arange(12).remainder(3)
    labels[place] = label
    labels = labels.view(1, 1, 12).to(dtype)
    ignored = ignore_index if ignore_index != -1 or not unsigned else None
    function = loss(softmax=True, to_onehot_y=True, ignore_index=ignored)
    logits = torch.zeros(1, 3, 12)
    if label < 3 or label == ignored:
        assert function(logits, labels) >= 0
    else:
        with pytest.raises(ValueError, match=rf"^Labels span 0 to {label}; expected 0 to 2 for 3 classes"):
            function(logits, labels)


def test_a_negative_label_is_refused() -> None:
    """-1 is no class unless it is the one to ignore."""
    labels = torch.tensor([[[0, 1, -1, 1]]])
    with pytest.raises(ValueError, match="Labels span -1 to 1; expected 0 to 1"):
        SoftL1ACELoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 4), labels)
    assert SoftL1ACELoss(softmax=True, to_onehot_y=True, ignore_index=-1)(torch.zeros(1, 2, 4), labels) >= 0


@EITHER
def test_shapes_that_disagree_are_refused(loss: Loss) -> None:
    """A target on another grid, or with other classes, is never broadcast."""
    logits, labels = random_batch(4)

    with pytest.raises(ValueError, match="does not fit: expected"):
        loss(softmax=True, to_onehot_y=True)(logits, labels[..., :1])
    with pytest.raises(ValueError, match="does not fit: expected"):
        loss(softmax=True)(logits, labels)


@pytest.mark.parametrize(("binning", "loss"), [("hard", HardL1ACELoss), ("soft", SoftL1ACELoss)])
def test_the_terms_add_up(binning: str, loss: Loss) -> None:
    """The total is Dice + CE plus the weighted ACE, each equal to the loss of its name."""
    logits, labels = random_batch(5)

    terms = ACEDiceCELoss(binning, 0.3).terms(logits, labels)  # type: ignore[arg-type]

    assert list(terms) == ["total", "dice_ce", "ace"]
    assert terms["ace"].item() == loss(softmax=True, to_onehot_y=True)(logits, labels).item()
    assert terms["total"].item() == pytest.approx(terms["dice_ce"].item() + 0.3 * terms["ace"].item(), rel=1e-6)


def test_without_weight_only_dice_and_cross_entropy_remain() -> None:
    """Weight 0 is MONAI's DiceCELoss, value and gradient."""
    logits, labels = random_batch(6)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    dice_ce = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5)

    total = ACEDiceCELoss("hard", 0.0)(ours, labels)
    expected = dice_ce(theirs, labels)
    total.backward()
    expected.backward()

    assert total.item() == expected.item()
    assert relative_error(ours.grad, theirs.grad) < 1e-6


def test_bfloat16_logits_lose_nothing_but_their_own_digits() -> None:
    """Under mixed precision softmax is taken in float32 and the sums in float64."""
    logits, labels = random_batch(7)
    loss = HardL1ACELoss(softmax=True, to_onehot_y=True)

    expected = loss(logits.bfloat16().double(), labels).item()
    assert loss(logits.bfloat16(), labels).item() == pytest.approx(expected, abs=1e-7)


@EITHER
def test_autocast_changes_nothing(loss: Loss) -> None:
    """Within a region of mixed precision the loss of float32 logits and its gradient are what they are outside."""
    logits, labels = random_batch(16)
    inside, outside = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    function = loss(softmax=True, to_onehot_y=True)

    expected = function(outside, labels)
    with torch.autocast("cpu", torch.bfloat16):
        value = function(inside, labels)
    expected.backward()
    value.backward()

    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    assert inside.grad is not None
    assert outside.grad is not None
    assert torch.equal(inside.grad, outside.grad)


@BOTH
def test_sigmoid_and_multi_label_targets(loss: Loss, reference: Reference) -> None:
    """Overlapping regions are each a question of their own, also with soft targets: value and gradient."""
    generator = torch.Generator().manual_seed(8)
    logits, target = torch.randn(2, 3, 9, 8, generator=generator), torch.rand(2, 3, 9, 8, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()

    value = loss(sigmoid=True)(ours, target)
    expected = reference_loss(
        reference, theirs.sigmoid().flatten(2), target.double().flatten(2), bins=20, ignore_empty=True
    )
    value.backward()
    expected.backward()

    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert relative_error(ours.grad, theirs.grad) < 1e-4
    assert loss(other_act=torch.sigmoid)(logits, target).item() == value.item()


@EITHER
@pytest.mark.parametrize("shape", [(24,), (6, 4), (2, 3, 4)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_and_their_one_hot_say_the_same(loss: Loss, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """However labels are given and voxels arranged, the loss and its gradient are those of the voxels in a row."""
    generator = torch.Generator().manual_seed(14)
    logits, labels = torch.randn(2, 3, 24, generator=generator), torch.randint(3, (2, 1, 24), generator=generator)
    row, label_grid, one_hot_grid = (logits.clone().requires_grad_() for _ in range(3))

    expected = loss(softmax=True, to_onehot_y=True)(row, labels)
    of_labels = loss(softmax=True, to_onehot_y=True)(
        label_grid.reshape(2, 3, *shape), labels.to(dtype).reshape(2, 1, *shape)
    )
    encoded = one_hot(labels[:, 0], 3).movedim(-1, 1).to(dtype).reshape(2, 3, *shape)
    of_one_hot = loss(softmax=True)(one_hot_grid.reshape(2, 3, *shape), encoded)
    for value in (expected, of_labels, of_one_hot):
        value.backward()

    assert of_labels.item() == of_one_hot.item() == expected.item()
    assert row.grad is not None
    assert row.grad.any()
    for grid in (label_grid, one_hot_grid):
        assert grid.grad is not None
        assert torch.equal(grid.grad, row.grad)


@EITHER
def test_ignored_voxels_count_for_nothing(loss: Loss) -> None:
    """Value and gradient are those of the image without the voxels of the ignored label."""
    logits, labels = random_batch(9)
    labels[:, :, 3:] = 255
    whole, part = logits.clone().requires_grad_(), logits[:, :, :3].clone().requires_grad_()

    value = loss(softmax=True, to_onehot_y=True, ignore_index=255)(whole, labels)
    expected = loss(softmax=True, to_onehot_y=True)(part, labels[:, :, :3])
    value.backward()
    expected.backward()

    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert whole.grad is not None
    assert relative_error(whole.grad[:, :, :3], part.grad) < 1e-6
    assert not whole.grad[:, :, 3:].any()


@EITHER
def test_a_class_whose_label_is_ignored_is_absent(loss: Loss) -> None:
    """Ignoring the background leaves it no voxel: it contributes 0, or is left out of the mean."""
    logits, labels = random_batch(15)
    options: Any = {"softmax": True, "to_onehot_y": True, "ignore_index": 0}

    each = loss(reduction="none", **options)(logits, labels)
    left_out = loss(leave_out_empty_classes=True, **options)(logits, labels)

    assert not each[:, 0].any()
    assert (each[:, 1:] > 0).all()
    assert left_out.item() == pytest.approx(each[:, 1:].mean().item())


@EITHER
def test_reductions_and_weights(loss: Loss) -> None:
    """`none` has a value per image and class, the sum and the mean are its own, weights multiply the classes."""
    logits, labels = random_batch(10)
    options: Any = {"softmax": True, "to_onehot_y": True}

    each = loss(reduction="none", **options)(logits, labels)

    assert each.shape == (2, 4, 1, 1, 1)
    assert loss(reduction="sum", **options)(logits, labels).item() == pytest.approx(each.sum().item())
    weighted = loss(weight=[0, 1, 2, 0], **options)(logits, labels).item()
    assert weighted == pytest.approx((each[:, 1].sum() + 2 * each[:, 2].sum()).item() / 8)


@EITHER
def test_absent_classes_can_be_left_out_of_the_mean(loss: Loss) -> None:
    """Left out, an absent class does not dilute the mean of those that are there."""
    logits, labels = random_batch(11, present=2)
    each = loss(reduction="none", softmax=True, to_onehot_y=True)(logits, labels)

    value = loss(softmax=True, to_onehot_y=True, leave_out_empty_classes=True)(logits, labels).item()

    assert value == pytest.approx(each[:, :2].mean().item())


def test_right_closes_hard_bins_on_the_left() -> None:
    """P = 0.05 falls into bin 0 by default and into bin 1 with `right`, p = 1 into the last bin either way."""
    p = torch.tensor([[[0.04, 0.05, 0.08, 1.0]]])
    y = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])

    assert HardL1ACELoss()(p, y).item() == pytest.approx((0.045 + 0.92 + 0) / 3)
    assert HardL1ACELoss(right=True)(p, y).item() == pytest.approx((0.04 + abs(0.065 - 0.5) + 0) / 3)


@EITHER
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmoid": True, "softmax": True}, "exclude each other"),
        ({"ignore_index": 255}, "needs labels"),
        ({"num_bins": 0}, "expected 1 to 253"),
        ({"num_bins": 254}, "expected 1 to 253"),
        ({"weight": [1.0, -1.0]}, "at least 0"),
    ],
)
def test_options_that_cannot_work_are_refused(loss: Loss, options: dict[str, object], message: str) -> None:
    """An option that excludes another or lies out of range is an error at once."""
    with pytest.raises(ValueError, match=message):
        loss(**options)  # type: ignore[arg-type]


@EITHER
def test_a_weight_per_counted_class_is_needed(loss: Loss) -> None:
    """Three weights for four classes are an error, not a broadcast."""
    logits, labels = random_batch(12)
    with pytest.raises(ValueError, match="3 weights for 4"):
        loss(softmax=True, to_onehot_y=True, weight=[1, 1, 1])(logits, labels)


@pytest.mark.parametrize("binning", ["hard", "soft"])
def test_deep_supervision_takes_the_sum(binning: str) -> None:
    """MONAI's DeepSupervisionLoss scores each scale with it, halving the weight and the labels from scale to scale."""
    generator = torch.Generator().manual_seed(13)
    labels = torch.randint(3, (1, 1, 8, 8, 8), generator=generator).float()
    scales = [torch.randn(1, 3, n, n, n, generator=generator) for n in (8, 4)]
    loss = ACEDiceCELoss(binning, 0.3)  # type: ignore[arg-type]

    value = DeepSupervisionLoss(loss)(scales, labels).item()

    smaller = torch.nn.functional.interpolate(labels, size=(4, 4, 4), mode="nearest-exact")
    assert value == pytest.approx(loss(scales[0], labels).item() + loss(scales[1], smaller).item() / 2)


@pytest.mark.parametrize("binning", ["hard", "soft"])
def test_terms_of_several_scales_are_those_of_monai(binning: str) -> None:
    """A list of scales gives MONAI's DeepSupervisionLoss of the sum, value and gradient, and so does each term."""
    generator = torch.Generator().manual_seed(17)
    labels = torch.randint(3, (2, 1, 8, 8, 8), generator=generator).to(torch.uint8)
    scales = [torch.randn(2, 3, n, n, n, generator=generator) for n in (8, 4, 2)]
    ours, theirs = ([scale.clone().requires_grad_() for scale in scales] for _ in range(2))
    loss = ACEDiceCELoss(binning, 0.3)  # type: ignore[arg-type]

    terms = loss.terms(ours, labels)
    expected = DeepSupervisionLoss(loss)(theirs, labels.float())
    terms["total"].backward()
    expected.backward()

    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    for scale, of_monai in zip(ours, theirs, strict=True):
        assert relative_error(scale.grad, of_monai.grad) < 1e-6
    for name, function in (("dice_ce", loss.dice_ce), ("ace", loss.ace)):
        assert terms[name].item() == pytest.approx(
            DeepSupervisionLoss(function)(scales, labels.float()).item(), rel=1e-6
        )


@pytest.mark.gpu
@EITHER
@pytest.mark.parametrize("options", [{}, {"ignore_index": 3}, {"weight": [1.0, 2.0, 0.5, 0.0]}], ids=str)
def test_a_gpu_gives_what_the_processor_gives(loss: Loss, options: dict[str, object], gpu_device: torch.device) -> None:
    """Value and gradient on CUDA equal those on the CPU but for the order of float64 sums."""
    logits, labels = random_batch(18)
    here, there = logits.clone().requires_grad_(), logits.clone().to(gpu_device).requires_grad_()
    function = loss(softmax=True, to_onehot_y=True, **options)  # type: ignore[arg-type]

    expected = function(here, labels)
    value = function(there, labels.to(gpu_device))
    expected.backward()
    value.backward()

    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert there.grad is not None
    assert there.grad.device == gpu_device
    assert relative_error(there.grad.cpu(), here.grad) < 1e-4


@pytest.mark.gpu
def test_all_terms_on_a_gpu(gpu_device: torch.device) -> None:
    """Dice + CE + ACE of two scales, in bfloat16 under autocast, equal those of the same logits on the CPU."""
    generator = torch.Generator().manual_seed(19)
    labels = torch.randint(3, (2, 1, 8, 8, 8), generator=generator).float()
    scales = [torch.randn(2, 3, n, n, n, generator=generator).bfloat16() for n in (8, 4)]
    loss = ACEDiceCELoss("soft", 0.3)

    expected = loss.terms(scales, labels)
    with torch.autocast(gpu_device.type, torch.bfloat16):
        terms = loss.terms([scale.to(gpu_device) for scale in scales], labels.to(gpu_device))

    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the losses treat the CPU's tensors as a GPU's."""
    for module in (sums, deferred):
        monkeypatch.setattr(module, "asynchronous", lambda _: True)


class Waits(TorchDispatchMode):
    """Counts the operations that would make a program wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.seen: list[str] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = func.overloadpacket.__name__
        # An index that is a mask is made into numbers, whose count the program must know.
        indices = args[1] if name in {"index", "index_put", "index_put_"} else ()
        if name in self.WAITING or any(each is not None and each.dtype == torch.bool for each in indices):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"ignore_index": 3},
    {"weight": [1.0, 2.0, 0.5, 0.0]},
    {"include_background": False, "leave_out_empty_classes": True, "reduction": "none"},
]


def test_what_waits_is_counted() -> None:
    """Reading a value, counting bins and an index by a mask are each seen."""
    values = torch.arange(4)
    with Waits() as waits:
        values.sum().item()
        torch.bincount(values)
        values[values > 2] = 0
    assert waits.seen == ["_local_scalar_dense", "bincount", "index_put_"]


@EITHER
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_waits_for_a_gpu(loss: Loss, options: dict[str, Any]) -> None:
    """Neither the forward nor the backward pass reads a value of the device."""
    logits, labels = random_batch(18)
    leaf = logits.clone().requires_grad_()
    function = loss(softmax=True, to_onehot_y=True, **options)
    with Waits() as waits:
        function(leaf, labels).sum().backward()
    assert waits.seen == []


@EITHER
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_sums_of_a_gpu_are_those_of_the_processor(
    loss: Loss, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient from sums of integers, several classes at once, equal those from float64 sums, row by row."""
    logits, labels = random_batch(18)
    function = loss(softmax=True, to_onehot_y=True, **options)
    found = []
    for asynchronous in (False, True):
        monkeypatch.setattr(sums, "asynchronous", lambda _, told=asynchronous: told)
        leaf = logits.double().requires_grad_()
        value = function(leaf, labels)
        value.sum().backward()
        found.append((value.detach(), leaf.grad))

    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-15)


@EITHER
@pytest.mark.usefixtures("on_a_gpu")
def test_values_out_of_range_are_refused_a_call_later(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the call itself does not wait: the next one raises, or the check after the last."""
    function = loss(softmax=True, to_onehot_y=True)
    logits, labels = random_batch(3)
    arrived: list[str] = []
    monkeypatch.setattr(
        deferred, "_now", lambda _: SimpleNamespace(query=lambda: bool(arrived), synchronize=lambda: None)
    )

    function(torch.full_like(logits, float("nan")), labels)
    function(logits, labels)
    arrived.append("the figures of both")
    with pytest.raises(ValueError, match=r"output is not finite.*lower the learning rate or clip gradients"):
        function(logits, labels)
    function.check()
    arrived.clear()
    function(logits, labels + 7)
    with pytest.raises(ValueError, match="Labels span 7 to"):
        function.check()
    function.check()


@pytest.mark.gpu
@EITHER
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_does_not_wait_for_the_gpu(loss: Loss, options: dict[str, Any], gpu_device: torch.device) -> None:
    """CUDA itself says so: an operation that waits is an error meanwhile."""
    logits, labels = (tensor.to(gpu_device) for tensor in random_batch(18))
    function = loss(softmax=True, to_onehot_y=True, **options)
    leaf = logits.clone().requires_grad_()
    function(leaf, labels).sum().backward()
    with no_waiting(gpu_device):
        function(leaf, labels).sum().backward()
    function.check()


@pytest.mark.gpu
def test_all_terms_do_not_wait_for_the_gpu(gpu_device: torch.device) -> None:
    """The same of Dice + CE + ACE, MONAI's part included."""
    logits, labels = (tensor.to(gpu_device) for tensor in random_batch(18))
    loss = ACEDiceCELoss("hard", 1.0)
    leaf = logits.clone().requires_grad_()
    loss(leaf, labels).backward()
    with no_waiting(gpu_device):
        loss(leaf, labels).backward()
    loss.check()


@pytest.mark.gpu
@EITHER
def test_a_gpu_gives_the_same_bits_again(loss: Loss, gpu_device: torch.device) -> None:
    """At a size at which many voxels share a bin, two runs agree in every bit, and nearly with float64 on the CPU."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(2, 3, 40, 40, 40, generator=generator)
    labels = torch.randint(3, (2, 1, 40, 40, 40), generator=generator)
    function = loss(softmax=True, to_onehot_y=True)

    def run(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = at.detach().clone().requires_grad_()
        value = function(leaf, labels.to(at.device))
        value.backward()
        assert leaf.grad is not None
        return value.detach().cpu(), leaf.grad.cpu()

    once, again = (run(logits.to(gpu_device)) for _ in range(2))
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    exact = run(logits.double())
    assert once[0].item() == pytest.approx(exact[0].item(), abs=1e-6)
    assert relative_error(once[1], exact[1]) < 1e-3


@pytest.mark.gpu
@EITHER
def test_a_gpu_refuses_values_out_of_range(loss: Loss, gpu_device: torch.device) -> None:
    """The device survives labels and logits that make no sense, and the error says what is wrong."""
    logits, labels = (tensor.to(gpu_device) for tensor in random_batch(3))
    function = loss(softmax=True, to_onehot_y=True)

    def checked(logits: torch.Tensor, labels: torch.Tensor) -> float:
        value = function(logits, labels)
        function.check()
        return value.item()

    with pytest.raises(ValueError, match="output is not finite"):
        checked(torch.full_like(logits, float("nan")), labels)
    with pytest.raises(ValueError, match="Labels span 7 to"):
        checked(logits, labels + 7)
    assert checked(logits, labels) >= 0


def relative_error(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    """Return the L2 norm of the difference over that of what was expected."""
    assert found is not None
    assert expected is not None
    return float((found.double() - expected.double()).norm() / expected.double().norm())
