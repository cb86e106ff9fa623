import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.schema import ServiceConfig
from service.errors import ConstantVolume
from service.pipeline.preprocess import preprocess
from service.pipeline.tissue import constant_planes, padding_of, tissue_of
from service.volume import Volume

SHAPE = (12, 15, 10)


def volume_of(array: np.ndarray) -> Volume:
    """Return an image of one channel with voxels of 1 mm."""
    return Volume(array[np.newaxis], np.eye(4), b"")


def tissue(seed: int) -> np.ndarray:
    """Return intensities without any constant plane, above 0."""
    return np.random.default_rng(seed).normal(500, 80, SHAPE).astype(np.float32)


@given(
    widths=st.lists(st.integers(0, 8), min_size=6, max_size=6),
    value=st.sampled_from([0, -1024, -3024, 4095]),
    seed=st.integers(0, 1000),
)
def test_padding_of_any_width_and_value_is_found(widths: list[int], value: int, seed: int) -> None:
    """Exactly the added voxels are padding."""
    before_after = list(zip(widths[::2], widths[1::2], strict=True))
    padded = np.pad(tissue(seed), before_after, constant_values=value)

    mask = padding_of(padded)

    if not any(widths):
        assert mask is None
    else:
        expected = np.pad(np.zeros(SHAPE, bool), before_after, constant_values=True)
        np.testing.assert_array_equal(mask, expected)


def test_the_fill_of_an_outer_plane_is_padding_everywhere() -> None:
    """A turned field of view fills corners with the value of the outermost planes."""
    array = tissue(0)
    array[0] = array[3:5, :4, :4] = 0

    mask = padding_of(array)

    np.testing.assert_array_equal(mask, array == 0)


def test_the_value_of_an_inner_plane_is_no_padding_elsewhere() -> None:
    """A lost slice says nothing of other voxels that happen to have its value."""
    array = tissue(0)
    array[5], array[2, 2, 2] = 7, 7

    mask = padding_of(array)

    assert mask is not None
    assert mask[5].all()
    assert mask.sum() == mask[5].size


@pytest.mark.parametrize("axis", range(3))
def test_planes_are_compared_as_a_whole(axis: int) -> None:
    """A plane with one other voxel is not constant, wherever that voxel lies."""
    array = np.zeros(SHAPE)
    array[tuple(np.random.default_rng(axis).integers(SHAPE))] = 1

    found = constant_planes(array, axis)

    (odd,) = np.flatnonzero(array.any(axis=tuple(other for other in range(3) if other != axis)))
    assert found.tolist() == [k for k in range(SHAPE[axis]) if k != odd]


def test_a_ramp_shows_nothing() -> None:
    """Planes that are each constant, all with another value, are refused."""
    array = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)

    with pytest.raises(ConstantVolume, match="nothing to segment"):
        tissue_of(volume_of(np.array(array)))


def test_the_user_is_told_the_shares() -> None:
    """Warnings name the share of padding and the number of outliers."""
    padded = np.pad(tissue(0), 2, constant_values=-1024)
    padded[5, 5, 5] = 1e6

    warnings = " ".join(tissue_of(volume_of(padded)).warnings)

    share = 100 * (1 - np.prod(SHAPE) / padded.size)
    assert f"{share:.1f} % of the voxels show nothing" in warnings
    assert "clipped: 1 voxel (" in warnings
    assert tissue_of(volume_of(tissue(0))).warnings == ()


@given(seed=st.integers(0, 1000), width=st.integers(1, 8), value=st.sampled_from([0.0, -3024.0]))
def test_padding_and_spikes_leave_the_network_s_input_alone(seed: int, width: int, value: float) -> None:
    """By robust_zscore tissue has the same values with and without padding, and with a spike but for that voxel."""
    config = config_of()
    clean = tissue(seed)
    padded = np.pad(clean, width, constant_values=value)
    spiked = clean.copy()
    spiked[3, 4, 5] = 1e6

    expected = preprocess(volume_of(clean), config)[0][0].numpy()
    inner = (slice(width, -width),) * 3
    with_padding = preprocess(volume_of(padded), config)[0][0].numpy()
    with_spike = preprocess(volume_of(spiked), config)[0][0].numpy()

    np.testing.assert_allclose(with_padding[inner], expected, atol=1e-5)
    assert np.count_nonzero(with_padding) <= clean.size
    elsewhere = spiked < 1e6
    np.testing.assert_allclose(
        with_spike[elsewhere], expected[elsewhere], atol=0.2
    )  # one voxel of 1,800 moves a percentile
    assert abs(with_spike).max() < 6


def test_robust_zscore_is_clipping_and_zscore() -> None:
    """An independent computation in float64 agrees."""
    array = tissue(3)
    low, high = np.percentile(array.astype(np.float64), [0.5, 99.5])
    clipped = np.clip(array.astype(np.float64), low, high)

    found = preprocess(volume_of(array), config_of())[0][0].numpy()

    np.testing.assert_allclose(found, (clipped - clipped.mean()) / clipped.std(), atol=1e-5)


def config_of() -> ServiceConfig:
    """Return a configuration whose only step is robust_zscore, at 1 mm."""
    from model_training.recipes.hippocampus import HIPPOCAMPUS

    return HIPPOCAMPUS.service
