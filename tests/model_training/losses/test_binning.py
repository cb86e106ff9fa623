import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_training.losses.binning import hard_index, soft_index
from service.calibration.histogram import bin_index

probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50)


@given(probabilities)
def test_hard_bins_are_those_of_the_histogram(values: list[float]) -> None:
    """Training and card share one bin rule, at every float32 and at the edges."""
    row = np.array([*values, *(k / 20 for k in range(21))], np.float32)
    assert hard_index(torch.from_numpy(row), 20).tolist() == bin_index(row).tolist()


def test_bins_closed_on_the_left() -> None:
    """With `right` an edge belongs to the bin above it, and p = 1 still to the last."""
    row = torch.tensor([0.0, 0.05, 0.5, 1.0])
    assert hard_index(row, 20, right=True).tolist() == [0, 1, 10, 19]


def test_soft_bins_by_hand() -> None:
    """Of 4 bins with centres 1/8, 3/8, 5/8, 7/8: below the first, on it, halfway between two, beyond the last."""
    index, w = soft_index(torch.tensor([0.1, 0.125, 0.5, 0.95]), 4)
    assert index.tolist() == [0, 1, 2, 4]
    torch.testing.assert_close(w[1:3], torch.tensor([0.0, 0.5]))
