from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.bundle.schema import Label, ServiceConfig
from service.calibration.histogram import ReliabilityHistogram
from service.errors import InvalidProbabilities
from service.pipeline import preprocess as preprocess_module
from service.pipeline.grid import Grid
from service.pipeline.predict import most_probable, probabilities, reliability_histogram, segment, segment_on_device
from service.pipeline.preprocess import preprocess
from service.volume import Volume


def grid_of(shape: tuple[int, ...]) -> Grid:
    """Return the grid of a scan that needs no resampling."""
    return Grid(shape, np.array([[0, 1], [1, 1], [2, 1]], np.float64), shape, shape, (1, 1, 1))


def voxel(*logits: float) -> torch.Tensor:
    """Return the logits of one voxel, (C, 1, 1, 1) float16."""
    return torch.tensor(logits, dtype=torch.float16).view(-1, 1, 1, 1)


def test_probabilities_are_a_softmax(config: Callable[..., ServiceConfig]) -> None:
    """The logits ln 1, ln 2, ln 5 are the probabilities 1/8, 2/8, 5/8 within float16."""
    probs = probabilities(voxel(*np.log([1, 2, 5])), grid_of((1, 1, 1)), config())

    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.ravel(), [1 / 8, 2 / 8, 5 / 8], atol=1e-3)


def test_temperature_divides_the_logits(config: Callable[..., ServiceConfig]) -> None:
    """At temperature 2 the logits 0, 0, ln 16 are those of 0, 0, ln 4: 1/6, 1/6, 4/6."""
    probs = probabilities(voxel(0, 0, np.log(16)), grid_of((1, 1, 1)), config(temperature=[2.0, 2.0, 2.0]))

    np.testing.assert_allclose(probs.ravel(), [1 / 6, 1 / 6, 4 / 6], atol=1e-3)


def test_each_class_has_its_own_temperature(config: Callable[..., ServiceConfig]) -> None:
    """With temperatures 1, 2, 4 the logits 1, 2, 4 are equal."""
    probs = probabilities(voxel(1, 2, 4), grid_of((1, 1, 1)), config(temperature=[1.0, 2.0, 4.0]))

    np.testing.assert_allclose(probs.ravel(), [1 / 3, 1 / 3, 1 / 3], atol=1e-6)


def test_logits_are_interpolated_not_probabilities(config: Callable[..., ServiceConfig]) -> None:
    """Half-way between the logits -4 and 8 lies 2: a probability of 0.88, not the mean of 0.02 and 1.00."""
    logits = torch.zeros(3, 2, 1, 1, dtype=torch.float16)
    logits[1, :, 0, 0] = torch.tensor([-4.0, 8.0])
    logits[2] = -60
    grid = Grid((3, 1, 1), np.array([[0, 1], [1, 1], [2, 1]], np.float64), (3, 1, 1), (2, 1, 1), (2, 1, 1))

    probs = probabilities(logits, grid, config())

    np.testing.assert_allclose(probs[1, :, 0, 0], [0.0180, 0.8808, 0.9997], atol=1e-4)


def test_probabilities_come_back_in_the_scans_axes(config: Callable[..., ServiceConfig]) -> None:
    """A voxel's label lands on the same voxel of the file, even if its axes are flipped and permuted."""
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 0, 3] = 100
    affine = np.array([[0, -1, 0, 5], [0, 0, -1, 9], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    image, grid = preprocess(Volume(array[np.newaxis], affine, b""), config())
    logits = torch.cat([torch.zeros_like(image), image, -image.abs()]).half()

    actual = segment(logits, grid, config())

    assert np.argwhere(actual.mask == 1).tolist() == [[1, 0, 3]]


def test_the_mask_is_the_most_probable_label_by_hand(config: Callable[..., ServiceConfig]) -> None:
    """Of four voxels the most probable label and its probability are known; the first listed wins a tie."""
    probs = torch.tensor([[0.2, 0.1, 0.4, 0.5], [0.5, 0.3, 0.4, 0], [0.3, 0.6, 0.2, 0.5]])
    labels = [Label(value=value, name=str(value), color=(0, 0, 0)) for value in (0, 7, 4)]

    actual = segment(probs.log().half().reshape(3, 2, 2, 1), grid_of((2, 2, 1)), config(labels=labels))

    assert actual.mask.dtype == np.uint8
    assert actual.mask.ravel().tolist() == [7, 4, 0, 0]
    assert actual.confidence.ravel().tolist() == pytest.approx([0.5, 0.6, 0.4, 0.5], abs=1e-3)


@given(arrays(np.float32, (4, 3, 5, 2), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])))
def test_the_most_probable_class_is_numpys_argmax(probs: np.ndarray) -> None:
    """Of several equally probable classes the first is taken."""
    mask, highest = most_probable(torch.from_numpy(probs), [0, 7, 200, 3])

    assert np.array_equal(mask.numpy(), np.array([0, 7, 200, 3], np.uint8)[probs.argmax(axis=0)])
    assert np.array_equal(highest.numpy(), probs.max(axis=0))


@pytest.mark.parametrize("orientation", [[[0, 1], [1, 1], [2, 1]], [[2, -1], [0, 1], [1, -1]]], ids=["as is", "turned"])
def test_the_mask_at_once_is_that_of_the_probabilities(
    orientation: list[list[int]], config: Callable[..., ServiceConfig]
) -> None:
    """On a resampled, reoriented grid mask and confidence equal argmax and maximum of the probabilities bit for bit."""
    grid = Grid((9, 14, 11), np.array(orientation, float), (9, 14, 11), (5, 6, 7), (2, 2.6, 1.7))
    if orientation[0][0] == 2:
        grid = Grid((9, 14, 11), np.array(orientation, float), (14, 11, 9), (5, 6, 7), (3.2, 2, 1.3))
    logits = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(1)).half()
    declared = config(temperature=[1.0, 1.5, 0.7])

    actual, probs = segment(logits, grid, declared), probabilities(logits, grid, declared)

    assert np.array_equal(actual.mask, probs.argmax(axis=0))
    assert np.array_equal(actual.confidence, probs.max(axis=0))


@pytest.mark.parametrize(
    "orientation",
    [
        np.array(list(zip(axes, flips, strict=True)))
        for axes in permutations(range(3))
        for flips in product((1, -1), repeat=3)
    ],
    ids=lambda orientation: " ".join(str(pair) for pair in orientation.tolist()),
)
def test_a_gpu_reorients_as_the_cpu_does(
    orientation: np.ndarray, config: Callable[..., ServiceConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all 48 axis orders and directions, with slabs of one plane, what is written on the device is what comes back."""
    scan_shape = (9, 14, 11)
    oriented = tuple(scan_shape[axis] for axis in np.argsort(orientation[:, 0]))
    grid = Grid(scan_shape, orientation.astype(float), oriented, (5, 6, 7), (2, 2.2, 1.7))
    logits = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(1)).half()
    monkeypatch.setattr(preprocess_module, "SLAB_VALUES", 1)

    actual, expected = segment_on_device(logits, grid, config()), segment(logits, grid, config())

    assert actual.mask.flags.f_contiguous
    assert np.array_equal(actual.mask, expected.mask)
    assert np.array_equal(actual.confidence, expected.confidence)


def test_only_mask_and_confidence_come_back(
    config: Callable[..., ServiceConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies, however many slabs: torch's device `meta` lets nothing else be read on the way."""
    grid = Grid((9, 14, 11), np.array([[2, -1], [0, 1], [1, -1]], float), (14, 11, 9), (5, 6, 7), (3.2, 2, 1.3))
    copied: list[torch.Tensor] = []
    monkeypatch.setattr(preprocess_module, "SLAB_VALUES", 1)

    def to_host(array: torch.Tensor) -> torch.Tensor:
        copied.append(array)
        return torch.zeros(array.shape, dtype=array.dtype)

    monkeypatch.setattr("service.pipeline.predict.to_host", to_host)

    segment(torch.zeros(3, 5, 6, 7, dtype=torch.float16, device="meta"), grid, config())

    assert [(array.device.type, array.dtype, tuple(array.shape)) for array in copied] == [
        ("meta", torch.uint8, (9, 14, 11)),
        ("meta", torch.float32, (9, 14, 11)),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [3, 16])
def test_a_gpu_calibrates_alike(classes: int, config: Callable[..., ServiceConfig], gpu_device: torch.device) -> None:
    """Mask and confidence of logits on the device are those of the CPU within float32's precision."""
    grid = Grid((40, 61, 52), np.array([[2, -1], [0, 1], [1, -1]], float), (61, 52, 40), (30, 25, 42), (2, 2.1, 0.95))
    logits = torch.randn(classes, 30, 25, 42, generator=torch.Generator().manual_seed(1)).half()
    labels = [Label(value=value, name=str(value), color=(0, 0, 0)) for value in range(classes)]
    declared = config(labels=labels, temperature=[1.3] * classes)

    actual, expected = segment(logits.to(gpu_device), grid, declared), segment(logits, grid, declared)

    assert np.mean(actual.mask != expected.mask) < 1e-4
    np.testing.assert_allclose(actual.confidence, expected.confidence, rtol=0, atol=1e-5)


@given(data=st.data(), classes=st.integers(2, 16))
def test_confidence_lies_between_1_over_c_and_1(data: st.DataObject, classes: int) -> None:
    """For any float16 logits and temperatures the probabilities sum to 1, and the largest lies in [1/C, 1]."""
    shape = (classes, 2, 2, 1)
    elements = st.floats(-60000, 60000, width=16) | st.floats(-4, 4, width=16) | st.just(0.0)
    logits = torch.from_numpy(data.draw(arrays(np.float16, shape, elements=elements)))
    temperature = data.draw(st.lists(st.floats(0.25, 8), min_size=classes, max_size=classes))
    labels = [Label(value=value, name=str(value), color=(0, 0, 0)) for value in range(classes)]
    config = ServiceConfig.model_construct(labels=labels, temperature=temperature)  # type: ignore[call-arg]  # a part suffices

    probs = probabilities(logits, grid_of(shape[1:]), config)
    actual = segment(logits, grid_of(shape[1:]), config)

    np.testing.assert_allclose(probs.sum(axis=0), 1, atol=1e-5)
    assert actual.confidence.min() >= 1 / classes - 1e-6
    assert actual.confidence.max() <= 1
    assert np.array_equal(actual.mask, probs.argmax(axis=0))


def simplex(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the probabilities of 4 classes, (4, ...) float64, with a third of the voxels certain."""
    draws = np.random.default_rng(seed).dirichlet([0.4] * 4, size=shape)
    draws[::3] = np.eye(4)[draws[::3].argmax(axis=-1)]
    return np.moveaxis(draws, -1, 0)


def assert_same(actual: ReliabilityHistogram, expected: ReliabilityHistogram) -> None:
    """Compare counts and types exactly, and probability sums up to the order of summation."""
    for name in ("count", "sum_y"):
        assert getattr(actual, name).dtype == np.int64
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
    assert actual.sum_p.dtype == np.float64
    np.testing.assert_allclose(actual.sum_p, expected.sum_p, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("structures", [None, [(0,), (1,), (3,)], [(0,), (1, 2), (1, 2, 3), (2,)]])
def test_tensors_have_the_histogram_of_their_arrays(
    dtype: type[np.floating], structures: list[tuple[int, ...]] | None
) -> None:
    """For any float type and structures, counts are equal and sums differ only by the order of summation."""
    probs = simplex(1, (6, 7, 8)).astype(dtype)
    labels = np.random.default_rng(2).integers(4, size=(6, 7, 8))

    actual = reliability_histogram(torch.from_numpy(probs), torch.from_numpy(labels), structures)

    assert_same(actual, ReliabilityHistogram.from_probabilities(probs, labels, structures))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_labels_are_counted_whatever_their_integer_type(dtype: type[np.integer]) -> None:
    """Labels of one byte are counted like those of eight."""
    probs = simplex(3, (5, 4)).astype(np.float32)
    labels = np.random.default_rng(4).integers(4, size=(5, 4)).astype(dtype)

    actual = reliability_histogram(torch.from_numpy(probs), torch.from_numpy(labels), [(1, 3)])

    assert_same(actual, ReliabilityHistogram.from_probabilities(probs, labels, [(1, 3)]))


@given(data=st.data(), n=st.integers(1, 40))
def test_tensors_fall_into_the_bins_of_their_arrays(data: st.DataObject, n: int) -> None:
    """Bins agree at 0, 1, every k/20, its neighbouring float32 and anywhere between, also for sums."""
    edges = (np.arange(21) / 20).astype(np.float32)
    near = np.unique(np.concatenate([edges, np.nextafter(edges, np.float32(0.5))])).tolist()
    elements = st.sampled_from(near) | st.floats(0, 1, width=32)
    probs = data.draw(arrays(np.float32, (3, n), elements=elements))
    labels = data.draw(arrays(np.int64, n, elements=st.integers(0, 2)))
    rows = [(0,), (1,), (2,), (0, 2), (0, 1, 2)]

    actual = reliability_histogram(torch.from_numpy(probs), torch.from_numpy(labels), rows)

    assert_same(actual, ReliabilityHistogram.from_probabilities(probs, labels, rows))


def test_a_rounded_sum_above_one_is_certain() -> None:
    """In float32 0.27 + 0.66 + 0.07 is 1.0000001, which counts as 1."""
    probs = torch.tensor([[0.27], [0.66], [0.07]])
    assert probs.sum() > 1

    actual = reliability_histogram(probs, torch.tensor([1]), [(0, 1, 2)])

    assert (actual.count[0, 19], actual.sum_p[0, 19], actual.sum_y[0, 19]) == (1, 1.0, 1)


@pytest.mark.parametrize(
    ("probs", "labels"),
    [
        pytest.param([[np.nan, 0.5]], [0, 0], id="NaN"),
        pytest.param([[-0.001, 0.5]], [0, 0], id="negative"),
        pytest.param([[0.5, 1.001]], [0, 0], id="above one"),
        pytest.param([[0.5, np.inf]], [0, 0], id="infinite"),
        pytest.param([[0.5, 0.5]], [0, 1], id="label too large"),
        pytest.param([[0.5, 0.5]], [-1, 0], id="negative label"),
        pytest.param([[0.5, 0.5]], [0, 0, 0], id="other number of voxels"),
        pytest.param([[0.5, 0.5]], [0.0, 0.0], id="labels that are no integers"),
        pytest.param([[0.5, 0.5]], [False, False], id="labels that are a mask"),
        pytest.param([[0.5, 0.5]], [[0, 0]], id="other number of axes"),
    ],
)
def test_tensors_are_refused_as_arrays_are(probs: list[object], labels: list[object]) -> None:
    """Invalid probabilities and labels are refused alike in arrays and tensors."""
    p, y = np.array(probs, np.float32), np.array(labels)

    with pytest.raises(InvalidProbabilities):
        ReliabilityHistogram.from_probabilities(p, y)
    with pytest.raises(InvalidProbabilities):
        reliability_histogram(torch.from_numpy(p), torch.from_numpy(y))


def test_no_voxels_have_an_empty_histogram() -> None:
    """An image without voxels gives an empty histogram of the right types."""
    actual = reliability_histogram(torch.zeros(2, 0), torch.zeros(0, dtype=torch.long))

    assert_same(actual, ReliabilityHistogram.empty(2))


@pytest.mark.gpu
def test_a_gpu_reduces_what_lies_on_it(config: Callable[..., ServiceConfig], gpu_device: torch.device) -> None:
    """Mask and confidence from logits on the device equal those on the CPU except for ties."""
    grid = Grid((14, 11, 9), np.array([[0, 1], [1, 1], [2, 1]], float), (14, 11, 9), (5, 6, 7), (3.2, 2, 1.3))
    logits = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(1)).half()

    actual, expected = segment(logits.to(gpu_device), grid, config()), segment(logits, grid, config())

    assert (actual.mask != expected.mask).mean() < 1e-3
    np.testing.assert_allclose(actual.confidence, expected.confidence, atol=1e-5)
