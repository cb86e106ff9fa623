import math
import struct
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics.calibration import calibration_binning

from service.bundle.card import CaseRecord
from service.calibration import histogram as histogram_module
from service.calibration.cohort import CaseSums
from service.calibration.histogram import ReliabilityHistogram, bin_index
from service.calibration.scores import ece
from service.errors import InvalidProbabilities

Image = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""(C, N) probabilities and (N,) labels."""

EDGES = (np.arange(21) / 20).astype(np.float32)
NEAR_EDGES = np.unique(np.concatenate([EDGES, np.nextafter(EDGES, np.float32(0.5))]))

PROBABILITY = st.one_of(
    st.sampled_from(NEAR_EDGES.tolist()), st.floats(0, 1, width=32), st.integers(0, 20).map(lambda k: k / 20)
)


@st.composite
def images(draw: st.DrawFn, classes: int | None = None) -> Image:
    """Draw up to 30 voxels of 1 to 4 classes, with many probabilities on bin edges."""
    c = classes or draw(st.integers(1, 4))
    n = draw(st.integers(0, 30))
    return (
        draw(arrays(np.float32, (c, n), elements=PROBABILITY.map(np.float32))),
        draw(arrays(np.int64, n, elements=st.integers(0, c - 1))),
    )


def oracle_bin(p: float, bins: int = 20) -> int:
    """Apply the documented rule without numpy: the float64 product is exact, packing rounds it once to float32."""
    product: float = struct.unpack("<f", struct.pack("<f", p * bins))[0]
    return min(max(math.ceil(product) - 1, 0), bins - 1)


def oracle(image: Image) -> tuple[list[list[int]], list[list[float]], list[list[int]]]:
    """Return count, exact sum of p and sum of y, voxel by voxel."""
    probs, labels = image
    count, sum_p, sum_y = [], [], []
    for c, row in enumerate(probs.tolist()):
        members: list[list[tuple[float, bool]]] = [[] for _ in range(20)]
        for p, label in zip(row, labels.tolist(), strict=True):
            members[oracle_bin(p)].append((p, label == c))
        count.append([len(voxels) for voxels in members])
        sum_p.append([math.fsum(p for p, _ in voxels) for voxels in members])
        sum_y.append([sum(y for _, y in voxels) for voxels in members])
    return count, sum_p, sum_y


def without_overlap(draw: st.DrawFn, classes: int) -> list[tuple[int, ...]]:
    """Draw structures without overlap: each class belongs to at most one."""
    owner = draw(st.lists(st.integers(-1, classes - 1), min_size=classes, max_size=classes))
    rows = [tuple(c for c in range(classes) if owner[c] == row) for row in range(classes)]
    return [row for row in rows if row] or [(0,)]


@st.composite
def unions(draw: st.DrawFn) -> tuple[Image, list[tuple[int, ...]]]:
    """Draw an image of 4 classes whose probabilities sum to 1, many of them multiples of 1/20, and structures."""
    n = draw(st.integers(0, 30))
    cuts = np.sort(draw(arrays(np.float64, (3, n), elements=PROBABILITY)), axis=0)
    probs = np.diff(np.vstack([np.zeros(n), cuts, np.ones(n)]), axis=0).astype(np.float32)
    labels = draw(arrays(np.int64, n, elements=st.integers(0, 3)))
    return (probs, labels), without_overlap(draw, 4)


def assert_same(left: ReliabilityHistogram, right: ReliabilityHistogram) -> None:
    """Compare counts exactly and probability sums up to the order of summation."""
    np.testing.assert_array_equal(left.count, right.count)
    np.testing.assert_array_equal(left.sum_y, right.sum_y)
    np.testing.assert_allclose(left.sum_p, right.sum_p, rtol=1e-12, atol=1e-30)


def assert_identical(left: ReliabilityHistogram, right: ReliabilityHistogram) -> None:
    """Compare types, shapes and bits."""
    for name in ("count", "sum_p", "sum_y"):
        a, b = getattr(left, name), getattr(right, name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_bins_are_right_closed_and_hold_zero_and_one() -> None:
    """An edge k/20 belongs to the bin below it, 0 to the first bin and 1 to the last."""
    assert bin_index(EDGES).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]


def test_bins_next_to_an_edge() -> None:
    """A float32 step above an edge is in the next bin, unless the float32 product rounds back (0.45 and 0.9)."""
    above = np.nextafter(EDGES[:20], np.float32(2))

    assert bin_index(above).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 12, 13, 14, 15, 16, 17, 17, 18]


def test_bins_are_those_of_float32_for_float64_input() -> None:
    """A float64 probability is rounded to float32 first, so all callers get the same bin."""
    assert bin_index(np.array([0.15, 0.15 + 1e-12, 0.3, 0.55])).tolist() == [2, 2, 5, 10]


@given(PROBABILITY, st.integers(1, 100))
def test_bin_index_follows_the_documented_rule(p: float, bins: int) -> None:
    """Any probability falls into ``clip(ceil(float32(p) * M) - 1, 0, M - 1)`` for any number of bins."""
    p32 = np.float32(p)

    assert bin_index(np.array([p32]), bins).tolist() == [oracle_bin(float(p32), bins)]


def test_sums_of_four_voxels() -> None:
    """Two voxels share bin 4, (0.2, 0.25], one of them with the label; the others are alone in their bins."""
    probs = np.array([[0.75, 0.75, 0.0, 1.0], [0.25, 0.25, 1.0, 0.0]], np.float32)
    histogram = ReliabilityHistogram.from_probabilities(probs, np.array([0, 1, 1, 0]))

    filled = {
        (int(c), int(k)): (histogram.count[c, k], histogram.sum_p[c, k], histogram.sum_y[c, k])
        for c, k in np.argwhere(histogram.count)
    }

    assert filled == {
        (0, 0): (1, 0.0, 0),
        (0, 14): (2, 1.5, 1),
        (0, 19): (1, 1.0, 1),
        (1, 0): (1, 0.0, 0),
        (1, 4): (2, 0.5, 1),
        (1, 19): (1, 1.0, 1),
    }
    assert histogram.gap[1, [0, 4, 19]].tolist() == [0.0, 0.25, 0.0]


@given(images())
def test_sums_equal_a_loop_over_voxels(image: Image) -> None:
    """Counts and label sums equal a plain loop exactly, probability sums to float64 precision."""
    histogram = ReliabilityHistogram.from_probabilities(*image)

    count, sum_p, sum_y = oracle(image)
    assert histogram.count.tolist() == count
    assert histogram.sum_y.tolist() == sum_y
    np.testing.assert_allclose(histogram.sum_p, sum_p, rtol=1e-12)
    assert histogram.present.tolist() == [c in image[1] for c in range(len(image[0]))]


@given(unions())
def test_a_structure_sums_the_probabilities_of_its_classes(drawn: tuple[Image, list[tuple[int, ...]]]) -> None:
    """A row of several classes equals a float64 loop over the voxels; any of their labels counts.

    Sums are computed in float32, so a sum within 1e-6 of an edge k/20 may fall on either side: such voxels are left out.
    """
    (probs, labels), rows = drawn
    exact = np.stack([probs[list(row)].sum(axis=0, dtype=np.float64) for row in rows]).reshape(len(rows), -1)
    clear = ((np.abs(exact * 20 - np.round(exact * 20)) > 2e-5) | (exact == 0) | (exact == 1)).all(axis=0)
    probs, labels, exact = probs[:, clear], labels[clear], exact[:, clear]

    histogram = ReliabilityHistogram.from_probabilities(probs, labels, rows)

    for row, (classes, values) in enumerate(zip(rows, exact.tolist(), strict=True)):
        bins = [oracle_bin(min(p, 1.0)) for p in values]
        belongs = [label in classes for label in labels.tolist()]
        for k in range(20):
            inside = [i for i, actual in enumerate(bins) if actual == k]
            assert histogram.count[row, k] == len(inside)
            assert histogram.sum_y[row, k] == sum(belongs[i] for i in inside)
            assert histogram.sum_p[row, k] == pytest.approx(math.fsum(values[i] for i in inside), abs=1e-5)


@given(images())
def test_each_class_is_a_structure_by_default(image: Image) -> None:
    """Without structures the rows are the classes, to the last bit."""
    default = ReliabilityHistogram.from_probabilities(*image)

    explicit = ReliabilityHistogram.from_probabilities(*image, [(c,) for c in range(len(image[0]))])

    assert_identical(explicit, default)


def test_structures_may_overlap_by_hand() -> None:
    """Tumour = classes 1 and 2, its core = class 2: each voxel counts once in both rows."""
    probs = np.array([[0.5, 0.0], [0.25, 0.25], [0.25, 0.75]], np.float32)
    histogram = ReliabilityHistogram.from_probabilities(probs, np.array([0, 2]), [(1, 2), (2,)])

    filled = {
        (int(c), int(k)): (histogram.count[c, k], histogram.sum_p[c, k], histogram.sum_y[c, k])
        for c, k in np.argwhere(histogram.count)
    }

    assert filled == {(0, 9): (1, 0.5, 0), (0, 19): (1, 1.0, 1), (1, 4): (1, 0.25, 0), (1, 14): (1, 0.75, 1)}


def test_a_sum_that_rounding_lifts_above_one_is_one() -> None:
    """In float32 0.27 + 0.66 + 0.07 is 1.0000001: the voxel counts as certain, not as an error."""
    probs = np.array([[0.27], [0.66], [0.07]], np.float32)
    assert probs.sum() > 1

    histogram = ReliabilityHistogram.from_probabilities(probs, np.array([1]), [(0, 1, 2)])

    assert (histogram.count[0, 19], histogram.sum_p[0, 19], histogram.sum_y[0, 19]) == (1, 1.0, 1)


@given(
    arrays(np.int64, (2, 3, 20), elements=st.integers(0, 2**63 - 1)),
    arrays(np.float64, (3, 20), elements=st.floats(0, allow_nan=False, allow_infinity=False)),
)
def test_a_histogram_is_saved_and_loaded_bit_for_bit(
    integers: npt.NDArray[np.int64], sum_p: npt.NDArray[np.float64]
) -> None:
    """A card's record keeps every digit and integer type through JSON."""
    histogram = ReliabilityHistogram(integers[0], sum_p, integers[1])
    zeros = np.zeros(3, np.int64)
    sums = CaseSums("case", "person", histogram, 0.0, 0.0, zeros, zeros, np.zeros(3))

    text = CaseRecord.of(sums, (1, 1, 1), (1.0, 1.0, 1.0)).model_dump_json()

    assert_identical(CaseRecord.model_validate_json(text).sums().histogram, histogram)


@given(images(classes=3), images(classes=3))
def test_adding_histograms_pools_their_voxels(first: Image, second: Image) -> None:
    """The sum of two histograms is the histogram of both images together."""
    together = ReliabilityHistogram.from_probabilities(
        np.concatenate([first[0], second[0]], axis=1), np.concatenate([first[1], second[1]])
    )

    merged = ReliabilityHistogram.from_probabilities(*first) + ReliabilityHistogram.from_probabilities(*second)

    assert_same(merged, together)


@given(images())
def test_the_empty_histogram_changes_nothing(image: Image) -> None:
    """The empty histogram is the neutral element of addition."""
    histogram = ReliabilityHistogram.from_probabilities(*image)

    assert_same(histogram + ReliabilityHistogram.empty(len(image[0])), histogram)


@given(*[st.tuples(st.integers(1, 4), st.integers(1, 20))] * 2)
def test_histograms_of_other_shapes_do_not_add_up(first: tuple[int, int], second: tuple[int, int]) -> None:
    """Other classes or bins are an error, never a broadcast."""
    here, there = (ReliabilityHistogram.empty(*shape) for shape in (first, second))
    if first == second:
        assert (here + there).count.shape == first
    else:
        with pytest.raises(InvalidProbabilities, match="expected the same shape"):
            here + there


@given(images(), st.integers(1, 9))
def test_a_histogram_is_added_to_0_alone(image: Image, number: int) -> None:
    """`sum` begins with 0; another number is a TypeError."""
    histogram = ReliabilityHistogram.from_probabilities(*image)
    assert sum([histogram]) is histogram
    with pytest.raises(TypeError):
        number + histogram


@given(images(), st.randoms(use_true_random=False))
def test_the_order_of_voxels_is_irrelevant(image: Image, random: Random) -> None:
    """Shuffled voxels give the same sums."""
    probs, labels = image
    order = random.sample(range(labels.size), labels.size)

    shuffled = ReliabilityHistogram.from_probabilities(probs[:, order], labels[order])

    assert_same(shuffled, ReliabilityHistogram.from_probabilities(probs, labels))


@pytest.mark.parametrize("chunk", [1, 7, 60, 61])
def test_the_chunk_size_is_irrelevant(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 60 voxels gives the same sums binned at once or in chunks."""
    generator = np.random.default_rng(0)
    probs = generator.dirichlet([1, 1, 1], size=(3, 4, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    labels = generator.integers(3, size=(3, 4, 5))
    whole = ReliabilityHistogram.from_probabilities(probs, labels)

    monkeypatch.setattr(histogram_module, "CHUNK_VOXELS", chunk)

    assert_same(ReliabilityHistogram.from_probabilities(probs, labels), whole)


def test_counts_pass_the_limit_of_float32() -> None:
    """A bin of 2^24 voxels counts one more, where a float32 sum would stop."""
    crowd = ReliabilityHistogram.empty(1)
    crowd.count[0, 19] = crowd.sum_p[0, 19] = crowd.sum_y[0, 19] = 2**24
    one = ReliabilityHistogram.from_probabilities(np.ones((1, 1), np.float32), np.zeros(1, np.int64))

    total = crowd + one

    assert (total.count[0, 19], total.sum_p[0, 19], total.sum_y[0, 19]) == (2**24 + 1,) * 3


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        pytest.param([[np.nan, 0.5]], [0, 0], "span nan to nan", id="NaN"),
        pytest.param([[-0.001, 0.5]], [0, 0], "expected values in", id="negative"),
        pytest.param([[0.5, 1.001]], [0, 0], "Apply softmax first", id="above one"),
        pytest.param([[0.5, np.inf]], [0, 0], "expected values in", id="infinite"),
        pytest.param([[0.5, 0.5]], [0, 1], "Labels span 0 to 1; expected 0 to 0", id="label too large"),
        pytest.param([[0.5, 0.5]], [-1, 0], "Labels span -1 to 0", id="negative label"),
        pytest.param([[0.5, 0.5]], [0.0, 0.0], "Labels are float64", id="labels that are no integers"),
        pytest.param([[0.5, 0.5]], [False, False], "Labels are bool", id="labels that are a mask"),
        pytest.param([[0.5, 0.5]], [0, 0, 0], "do not belong to labels", id="other number of voxels"),
        pytest.param([[0.5, 0.5]], [[0, 0]], "do not belong to labels", id="other number of axes"),
    ],
)
def test_invalid_probabilities_and_labels_are_refused(probs: list[object], labels: list[object], message: str) -> None:
    """NaN, values outside [0, 1], labels outside 0 .. C-1 and shapes that disagree are never binned."""
    with pytest.raises(InvalidProbabilities, match=message):
        ReliabilityHistogram.from_probabilities(np.array(probs, np.float32), np.array(labels))


def test_a_volume_that_float32_cannot_count() -> None:
    """27,000,000 voxels in one bin are all counted, while MONAI's float32 count stops at 2^24.

    A float32 sum that has reached 16,777,216 no longer grows by 1.
    """
    shape = (300, 300, 300)
    labels = np.zeros(shape, np.uint8)
    labels.reshape(-1)[::1000] = 1
    probs = np.empty((2, *shape), np.float32)
    probs[1] = 0.001
    probs[0] = 1 - probs[1]

    histogram = ReliabilityHistogram.from_probabilities(probs, labels)

    assert histogram.count[1].tolist() == [27_000_000, *[0] * 19]
    assert histogram.sum_y[1, 0] == 27_000
    exact = 27_000_000 * float(np.float32(0.001))
    assert abs(histogram.sum_p[1, 0] - exact) / exact < 1e-9
    assert ece(histogram)[1] == pytest.approx(abs(exact - 27_000) / 27_000_000, abs=1e-9)

    p, y = torch.from_numpy(probs[1:]).unsqueeze(0), torch.from_numpy(labels).float()[None, None]
    _, _, counts = calibration_binning(p, y)
    assert float(counts.nan_to_num().sum()) < 27_000_000
