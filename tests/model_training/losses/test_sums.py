import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_training.losses import sums
from model_training.losses.sums import BinSums, blocks_of


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sums treat the CPU's tensors as a GPU's."""
    monkeypatch.setattr(sums, "asynchronous", lambda _: True)


def brute(index: torch.Tensor, values: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the sums bin by bin."""
    return torch.stack([torch.where(index == k, values, 0.0).sum(dim=1) for k in range(bins)], dim=1)


def drawn(voxels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bins of three rows, (3, N) below 5, and values in [-1, 1], (3, N) float64."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(5, (3, voxels), generator=generator).to(torch.uint8)
    return index, 2 * torch.rand(3, voxels, generator=generator, dtype=torch.float64) - 1


@given(st.integers(1, 3000), st.integers(0, 9))
def test_sums_of_integers_lie_within_their_bound(voxels: int, seed: int) -> None:
    """Each value is off by at most 2^-(k+1), k = 62 - ceil(log2 N); counts are exact."""
    index, values = drawn(voxels, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "asynchronous", lambda _: True)
        prepared = BinSums(index, 5)
        found, counts = prepared.of(values), prepared.count()

    assert torch.equal(counts, brute(index, torch.ones_like(values), 5))
    bound = voxels * 2.0 ** -(62 - (voxels - 1).bit_length() + 1)
    rounding = 1e-15 * voxels  # of the float64 sums themselves
    assert float((found - brute(index, values, 5)).abs().max()) <= bound + rounding


@pytest.mark.usefixtures("on_a_gpu")
def test_the_largest_sums_do_not_overflow() -> None:
    """All voxels in one bin, each at the bound that rounding leaves: 2^62 is reached, 2^63 is not."""
    index = torch.zeros(1, 1 << 16, dtype=torch.uint8)
    for value in (1.00002, -1.00002):
        values = torch.full(index.shape, value, dtype=torch.float64)
        assert BinSums(index, 2).of(values)[0].tolist() == pytest.approx([value * (1 << 16), 0.0])


@pytest.mark.usefixtures("on_a_gpu")
def test_the_order_of_the_voxels_changes_no_bit() -> None:
    """Sums of integers do not depend on their order, as float64 sums do."""
    index, values = drawn(100_000, 3)
    order = torch.randperm(100_000, generator=torch.Generator().manual_seed(4))

    assert torch.equal(BinSums(index, 5).of(values), BinSums(index[:, order], 5).of(values[:, order]))


@pytest.mark.usefixtures("on_a_gpu")
def test_an_index_beyond_the_last_bin_is_no_access_beyond_the_sums() -> None:
    """What came from NaN is counted in the last bin."""
    assert BinSums(torch.tensor([[0, 255]], dtype=torch.uint8), 3).count().tolist() == [[1.0, 0.0, 1.0]]


def test_a_processor_works_off_single_rows() -> None:
    """Two images of three classes are six blocks, image by image."""
    blocks = [(b, slice(c, c + 1)) for b in range(2) for c in range(3)]
    assert blocks_of(torch.zeros(2, 3, 5)) == blocks


def test_a_gpu_takes_as_many_classes_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for 10 voxels, three classes of 5 are blocks of two and one; too large a row is a block of its own."""
    monkeypatch.setattr(sums, "asynchronous", lambda _: True)
    monkeypatch.setattr(sums, "LARGEST_BLOCK", 10)

    assert blocks_of(torch.zeros(1, 3, 5)) == [(0, slice(0, 2)), (0, slice(2, 3))]
    assert blocks_of(torch.zeros(1, 2, 11)) == [(0, slice(0, 1)), (0, slice(1, 2))]


@pytest.mark.gpu
def test_a_gpu_sums_within_the_bound(gpu_device: torch.device) -> None:
    """At 96^3 voxels a mean over a bin is off by at most 1.2e-13 beside float64's own rounding."""
    index, values = drawn(96**3, 5)
    found = BinSums(index.to(gpu_device), 5).of(values.to(gpu_device)).cpu()

    assert float((found - brute(index, values, 5)).abs().max()) <= 96**3 / 5 * 2 * 1.2e-13 + 1e-8
