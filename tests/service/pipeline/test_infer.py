from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers.utils import sliding_window_inference
from torch import nn

from service.bundle.network import build_network
from service.bundle.schema import ServiceConfig
from service.pipeline import infer as infer_module
from service.pipeline.infer import (
    gaussian_weights,
    infer,
    infer_within_memory,
    sliding_window_logits,
    window_slices,
)

IMAGE_SHAPES = [
    (8, 8, 8),  # one window
    (9, 8, 8),
    (16, 12, 20),
    (5, 8, 8),  # padded
    (3, 4, 5),
    (1, 1, 1),
    (21, 3, 8),  # padded along one axis, several windows along another
]


@pytest.fixture(name="network")
def network_(tiny_config: ServiceConfig) -> nn.Module:
    """Return a tiny network with fixed weights."""
    torch.manual_seed(0)
    return build_network(tiny_config.network).eval()


class Constant(nn.Module):
    """A network that returns the same three logits everywhere and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.seen: list[torch.Tensor] = []

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return (1, 3, *window) logits."""
        self.seen.append(window.clone())
        return self.logits.view(1, 3, 1, 1, 1).expand(1, 3, *window.shape[2:])


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_monai_infers_alike(
    shape: tuple[int, ...], overlap: float, network: nn.Module, config: Callable[..., ServiceConfig]
) -> None:
    """MONAI's sliding-window inference with Gaussian weights gives the same logits, for one window and for several."""
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32))

    actual = sliding_window_logits(network, image, config(overlap=overlap))

    with torch.inference_mode():
        expected = sliding_window_inference(image[None], (8, 8, 8), 1, network, overlap=overlap, mode="gaussian")
    torch.testing.assert_close(actual, expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("patch", [(8, 8, 8), (48, 64, 48), (5, 4, 3)])
def test_monai_weights_alike(patch: tuple[int, int, int]) -> None:
    """The weight of each voxel of a window is MONAI's importance map, and never less than 1/1000."""
    weights = gaussian_weights(patch)

    expected = compute_importance_map(patch, mode="gaussian", sigma_scale=0.125, dtype=torch.float32)
    torch.testing.assert_close(weights, torch.as_tensor(expected), rtol=1e-5, atol=1e-6)
    assert weights.min() >= 1e-3
    assert weights.max() <= 1


def test_the_weight_falls_from_the_middle_by_hand() -> None:
    """For a window of 8, sigma is 1, and voxels at 0.5, 1.5, 2.5 from the middle weigh exp(-x^2 / 2)."""
    line = gaussian_weights((8, 1, 1))[:, 0, 0].tolist()

    half = [0.8824969, 0.3246525, 0.0439369, 0.0021875]
    assert line == pytest.approx([*reversed(half), *half], abs=1e-6)


def test_one_window_is_the_network_itself(network: nn.Module, config: Callable[..., ServiceConfig]) -> None:
    """For an image of the window's size the weights cancel."""
    image = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(2))

    with torch.inference_mode():
        expected = network(image[None])[0]
    torch.testing.assert_close(sliding_window_logits(network, image, config()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
def test_agreeing_windows_are_not_changed_by_their_average(
    shape: tuple[int, ...], config: Callable[..., ServiceConfig]
) -> None:
    """The average of a constant network is the constant: weights cancel, and no voxel is left out."""
    logits = sliding_window_logits(Constant(), torch.zeros(1, *shape), config())

    expected = torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1, 1).expand(3, *shape)
    torch.testing.assert_close(logits, expected)


def test_a_small_image_is_padded_with_0_on_both_sides(config: Callable[..., ServiceConfig]) -> None:
    """Of 5 missing voxels, 2 are added before and 3 behind, all 0."""
    network = Constant()

    sliding_window_logits(network, torch.full((1, 3, 8, 8), 7.0), config())

    assert network.seen[0][0, 0, :, 0, 0].tolist() == [0, 0, 7, 7, 7, 0, 0, 0]


def test_windows_by_hand(config: Callable[..., ServiceConfig]) -> None:
    """Along 13 voxels windows of 8 with half overlap begin at 0, 4 and, flush with the end, 5."""
    windows = window_slices((13, 8, 8), config(overlap=0.5))

    assert windows == [
        (slice(0, 8), slice(0, 8), slice(0, 8)),
        (slice(4, 12), slice(0, 8), slice(0, 8)),
        (slice(5, 13), slice(0, 8), slice(0, 8)),
    ]


@given(
    shape=st.tuples(*[st.integers(4, 30)] * 3),
    patch=st.tuples(*[st.integers(1, 4)] * 3),
    overlap=st.floats(0, 0.99),
)
def test_windows_cover_every_voxel(shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float) -> None:
    """Windows have the requested size, lie inside, are distinct and leave no voxel out."""
    config = ServiceConfig.model_construct(patch_size=patch, overlap=overlap)  # type: ignore[call-arg]  # a part suffices
    covered = np.zeros(shape, bool)

    windows = window_slices(shape, config)

    for window in windows:
        assert all(extent.start >= 0 and extent.stop <= n for extent, n in zip(window, shape, strict=True))
        assert tuple(extent.stop - extent.start for extent in window) == patch
        covered[window] = True
    assert covered.all()
    assert len({tuple(extent.start for extent in window) for window in windows}) == len(windows)


def test_logits_are_float16(network: nn.Module, config: Callable[..., ServiceConfig]) -> None:
    """Inference returns the logits rounded to float16, (classes, D, H, W), on the network's device."""
    image = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(3))

    logits = infer(network, image, config())

    assert (logits.dtype, logits.device.type, tuple(logits.shape)) == (torch.float16, "cpu", (3, 9, 8, 8))
    assert torch.equal(logits, sliding_window_logits(network, image, config()).half())


@pytest.mark.parametrize("shape", [*IMAGE_SHAPES, (40, 9, 8), (37, 5, 13)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_sums_over_a_window_are_those_over_the_whole(
    shape: tuple[int, ...], overlap: float, network: nn.Module, config: Callable[..., ServiceConfig]
) -> None:
    """Planes that are finished early equal sums over the whole image at once, bit for bit."""
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(4))
    declared = config(overlap=overlap)
    missing = [max(8 - n, 0) for n in shape]
    padded = nn.functional.pad(image, [w for n in reversed(missing) for w in (n // 2, n - n // 2)])
    total, weight = torch.zeros(3, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    weights = gaussian_weights((8, 8, 8))
    with torch.inference_mode():
        for window in window_slices(tuple(padded.shape[1:]), declared):
            total[(slice(None), *window)] += network(padded[(slice(None), *window)][None])[0] * weights
            weight[window] += weights
    inside = tuple(slice(n // 2, n // 2 + size) for n, size in zip(missing, shape, strict=True))

    assert torch.equal(sliding_window_logits(network, image, declared), (total / weight)[(slice(None), *inside)])


def test_progress_is_reported_after_each_window(config: Callable[..., ServiceConfig]) -> None:
    """Four windows are quarters of the work, and the last one is all of it."""
    heard: list[float] = []

    infer(Constant(), torch.zeros(1, 12, 12, 8), config(), heard.append)

    assert heard == [0.25, 0.5, 0.75, 1.0]


class OnAFullGPU(Constant):
    """A network that claims to be on a GPU until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.device = "cuda:0"

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:  # noqa: ARG002, FBT001, FBT002 - torch's own
        """Yield an object with the current device."""
        yield SimpleNamespace(device=torch.device(self.device))  # type: ignore[misc]

    def cpu(self) -> "OnAFullGPU":
        """Move to the CPU."""
        self.device = "cpu"
        return self

    def to(self, device: object) -> "OnAFullGPU":  # type: ignore[override]
        """Move to a device."""
        self.device = str(device)
        return self


@pytest.mark.parametrize(("failing", "placement"), [(0, "device"), (1, "device, sums on the CPU"), (2, "CPU")], ids=str)
def test_computation_moves_to_the_cpu_step_by_step(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., ServiceConfig], failing: int, placement: str
) -> None:
    """Each time the GPU's memory runs out more moves to the CPU: first the sums, then the network, for this case only."""
    network, image = OnAFullGPU(), torch.zeros(1, 8, 8, 8)
    ran_on: list[str] = []

    def compute(net: OnAFullGPU, scan: torch.Tensor, *_: object) -> torch.Tensor:
        ran_on.append(net.device)
        if len(ran_on) <= failing:
            raise torch.OutOfMemoryError
        return torch.ones(3, *scan.shape[1:])

    monkeypatch.setattr(infer_module, "infer", compute)
    monkeypatch.setattr(infer_module, "_half_logits", compute)

    logits, actual = infer_within_memory(network, image, config())

    assert actual == placement
    assert logits.shape == (3, 8, 8, 8)
    assert ran_on == ["cuda:0", "cuda:0", "cpu"][: failing + 1]
    assert network.device == "cuda:0"


def test_on_the_cpu_there_is_no_further_step(network: nn.Module, config: Callable[..., ServiceConfig]) -> None:
    """On the CPU the logits are those of `infer`."""
    image = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(3))

    logits, placement = infer_within_memory(network, image, config())

    assert placement == "device"
    assert torch.equal(logits, infer(network, image, config()))
