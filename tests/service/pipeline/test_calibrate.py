from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.bundle.schema import Label, ServiceConfig
from service.pipeline.calibrate import probabilities, segment
from service.pipeline.preprocess import Grid, preprocess
from service.volume import Volume


@pytest.fixture(name="config")
def config_(tiny_config: ServiceConfig) -> Callable[..., ServiceConfig]:
    """Return the function that changes fields of the tiny bundle's declaration."""
    return lambda **fields: tiny_config.model_copy(update=fields)  # noqa: PLW0108 - not a lambda of the same arguments


def grid_of(shape: tuple[int, ...]) -> Grid:
    """Return the grid of a scan that is already the network's."""
    return Grid(shape, np.array([[0, 1], [1, 1], [2, 1]], np.float64), shape, shape)


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
    grid = Grid((3, 1, 1), np.array([[0, 1], [1, 1], [2, 1]], np.float64), (3, 1, 1), (2, 1, 1))

    probs = probabilities(logits, grid, config())

    np.testing.assert_allclose(probs[1, :, 0, 0], [0.0180, 0.8808, 0.9997], atol=1e-4)


def test_probabilities_come_back_in_the_scans_axes(config: Callable[..., ServiceConfig]) -> None:
    """What the network says about a voxel is said about that voxel of the file, flipped and permuted as it is."""
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 0, 3] = 100
    affine = np.array([[0, -1, 0, 5], [0, 0, -1, 9], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    image, grid = preprocess(Volume(array[np.newaxis], affine, b""), config())
    logits = torch.cat([torch.zeros_like(image), image, -image.abs()]).half()

    found = segment(probabilities(logits, grid, config()), config())

    assert np.argwhere(found.mask == 1).tolist() == [[1, 0, 3]]


def test_the_mask_is_the_most_probable_label_by_hand(config: Callable[..., ServiceConfig]) -> None:
    """Four voxels: the winner's label value and its probability; of two equal ones the first listed wins."""
    probs = np.array([[0.2, 0.1, 0.4, 0.5], [0.5, 0.3, 0.4, 0], [0.3, 0.6, 0.2, 0.5]], np.float32)
    labels = [Label(value=value, name=str(value), color=(0, 0, 0)) for value in (0, 7, 4)]

    found = segment(probs.reshape(3, 2, 2, 1), config(labels=labels))

    assert found.mask.dtype == np.uint8
    assert found.mask.ravel().tolist() == [7, 4, 0, 0]
    assert found.confidence.ravel().tolist() == pytest.approx([0.5, 0.6, 0.4, 0.5])


@given(data=st.data(), classes=st.integers(2, 16))
def test_confidence_lies_between_1_over_c_and_1(data: st.DataObject, classes: int) -> None:
    """For any float16 logits and temperatures the probabilities sum to 1, and the largest is neither below 1/C nor above 1."""
    shape = (classes, 2, 2, 1)
    elements = st.floats(-60000, 60000, width=16) | st.floats(-4, 4, width=16) | st.just(0.0)
    logits = torch.from_numpy(data.draw(arrays(np.float16, shape, elements=elements)))
    temperature = data.draw(st.lists(st.floats(0.25, 8), min_size=classes, max_size=classes))
    labels = [Label(value=value, name=str(value), color=(0, 0, 0)) for value in range(classes)]
    config = ServiceConfig.model_construct(labels=labels, temperature=temperature)

    probs = probabilities(logits, grid_of(shape[1:]), config)
    found = segment(probs, config)

    np.testing.assert_allclose(probs.sum(axis=0), 1, atol=1e-5)
    assert found.confidence.min() >= 1 / classes - 1e-6
    assert found.confidence.max() <= 1
    assert np.array_equal(found.mask, probs.argmax(axis=0))
