import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import map_coordinates

from service.pipeline.resample import positions, positions_on_device, resampled

CPU = torch.device("cpu")
OBLIQUE: npt.NDArray[np.float64] = np.array(
    [[0.9, 0.2, -0.1, 1.5], [-0.3, 0.8, 0.1, 2.25], [0.05, -0.2, 1.1, -0.5], [0, 0, 0, 1]]
)


@pytest.mark.parametrize(("outside", "mode"), [("zeros", "constant"), ("border", "nearest")])
def test_scipy_resamples_alike(outside: str, mode: str) -> None:
    """On an oblique grid that leaves the image the values are scipy's, beyond the image zero or those of its border."""
    image = torch.rand(1, 2, 7, 6, 5, generator=torch.Generator().manual_seed(0))
    at = OBLIQUE[:3, :3] @ np.indices((8, 5, 6)).reshape(3, -1) + OBLIQUE[:3, 3:]
    # Half outside, grid_sample fades towards zero and scipy does not.
    clear = ((at >= 0) & (at <= np.array([[6], [5], [4]]))).all(axis=0) | (outside == "border")

    actual = resampled(image, OBLIQUE, (8, 5, 6), outside)[0].flatten(1).numpy()  # type: ignore[arg-type]

    expected = [map_coordinates(channel.double().numpy(), at, order=1, mode=mode) for channel in image[0]]
    assert clear.sum() > 50
    assert np.abs(actual - np.array(expected))[:, clear].max() < 1e-5


def test_a_single_plane_is_taken_within_half_a_voxel() -> None:
    """An image of one plane is seen up to half a voxel above and below it."""
    image = torch.ones(1, 1, 1, 3, 3)
    shifted = np.eye(4)
    seen = []
    for offset in (0.0, 0.4, -0.4):
        shifted[0, 3] = offset
        seen.append(float(resampled(image, shifted, (1, 3, 3))[0, 0, 0, 1, 1]))

    assert seen == [1, 1, 1]


def test_torch_and_numpy_agree_about_positions() -> None:
    """What a GPU computes is, up to rounding, what a CPU gets from numpy, in the same order."""
    actual, expected = positions_on_device(OBLIQUE, (4, 3, 5), CPU), positions(OBLIQUE, (4, 3, 5), CPU)

    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert expected[:, 1].tolist() == pytest.approx((OBLIQUE @ [0, 0, 1, 1])[:3])


@pytest.mark.gpu
def test_a_gpu_resamples_alike(gpu_device: torch.device) -> None:
    """Positions and values on the device are the CPU's."""
    image = torch.rand(1, 2, 7, 6, 5, generator=torch.Generator().manual_seed(0))

    actual = resampled(image.to(gpu_device), OBLIQUE, (8, 5, 6), "border")

    torch.testing.assert_close(actual.cpu(), resampled(image, OBLIQUE, (8, 5, 6), "border"), rtol=0, atol=1e-5)
