from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers.utils import sliding_window_inference
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from service.bundle.network import build_network
from service.bundle.schema import ServiceConfig
from service.engines.machine import prepare
from service.engines.torch_cast import Cast
from service.pipeline import infer as infer_module
from service.pipeline.infer import (
    Progress,
    gaussian_weights,
    infer,
    infer_within_memory,
    sliding_window_logits,
    window_slices,
)
from tests.cuda_waits import no_waiting

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
    """A network that claims to be on a GPU."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:  # noqa: ARG002, FBT001, FBT002 - torch's own
        """Yield an object with the device."""
        yield SimpleNamespace(device=torch.device("cuda:0"))  # type: ignore[misc]


class Image:
    """An image that notes which device it was last copied to."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def to(self, device: torch.device) -> "Image":
        """Return a copy on a device."""
        return Image(str(device))


@pytest.mark.parametrize(
    ("failing", "placement"), [(0, "device"), (1, "device"), (2, "device, sums on the CPU"), (3, "CPU")], ids=str
)
@pytest.mark.parametrize("images", [1, 2])
def test_computation_moves_to_the_cpu_step_by_step(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., ServiceConfig], failing: int, placement: str, images: int
) -> None:
    """Each time a GPU's memory runs out less of it is used, for all images of the case: none is left on another device.

    First fewer windows at a time, then no sums, then another network; the GPU's own never moves.
    """
    network, spare = OnAFullGPU(), Constant()
    attempts: list[tuple[str, str, int]] = []

    def compute(net: nn.Module, image: Image, _config: object, progress: Progress, at_a_time: int) -> torch.Tensor:
        attempts.append(("GPU" if net is network else "CPU", image.device, at_a_time))
        if len({*attempts}) <= failing:
            raise torch.OutOfMemoryError
        progress(1)
        return torch.ones(3, 2, 2, 2)

    monkeypatch.setattr(infer_module, "_half_logits", compute)
    heard: list[float] = []

    logits, actual = infer_within_memory(network, [Image()] * images, config(), lambda: spare, heard.append)  # type: ignore[list-item]

    steps = [("GPU", "cuda:0", 8), ("GPU", "cuda:0", 1), ("GPU", "cpu", 1), ("CPU", "cpu", 1)]
    assert actual == placement
    assert logits.shape == (images, 3, 2, 2, 2)
    assert attempts == steps[:failing] + steps[failing : failing + 1] * images
    assert heard == [(n + 1) / images for n in range(images)]


def test_an_error_that_is_not_about_memory_ends_the_case(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., ServiceConfig]
) -> None:
    """It would only come again, and a poisoned device must be noticed."""

    def fail(*_: object) -> torch.Tensor:
        msg = "CUDA error: an illegal memory access was encountered"
        raise RuntimeError(msg)

    monkeypatch.setattr(infer_module, "_half_logits", fail)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        infer_within_memory(OnAFullGPU(), [Image()], config(), Constant)  # type: ignore[list-item]


def test_on_the_cpu_there_is_no_further_step(network: nn.Module, config: Callable[..., ServiceConfig]) -> None:
    """On the CPU the logits are those of `infer`, a single image's without a copy."""
    images = torch.randn(2, 1, 9, 8, 8, generator=torch.Generator().manual_seed(3))

    logits, placement = infer_within_memory(network, [*images], config(), lambda: network)

    assert placement == "device"
    assert torch.equal(logits, torch.stack([infer(network, image, config()) for image in images]))
    assert torch.equal(infer_within_memory(network, [images[0]], config(), lambda: network)[0], logits[:1])


@pytest.mark.parametrize("at_a_time", [2, 3, 8, 100])
@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
def test_windows_may_be_computed_several_at_a_time(
    shape: tuple[int, ...],
    at_a_time: int,
    network: nn.Module,
    config: Callable[..., ServiceConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU takes a batch, whose windows need not lie in one row: the logits are those of one after another."""
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    expected = sliding_window_logits(network, image, config())
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _network, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(infer_module, "windows_at_a_time", lambda _device, _patch: at_a_time)

    actual = sliding_window_logits(network, image, config())

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert set(sizes[:-1]) <= {at_a_time}


class Event:
    """What a GPU has computed: an event comes only if it is waited for."""

    def __init__(self, come: list["Event"]) -> None:
        self._come = come

    def synchronize(self) -> None:
        """Wait for the event."""
        self._come.append(self)


def test_progress_does_not_run_ahead_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is reported when it was computed; two more may be under way; at the end all are reported."""
    come: list[Event] = []
    heard: list[tuple[float, int]] = []
    monkeypatch.setattr(infer_module, "_event_on", lambda _device: Event(come))
    pace = infer_module._Pace(torch.device("cuda"), 4, 2, lambda done: heard.append((done, len(come))))

    for _ in range(4):
        pace.sent_one()
    in_between = list(heard)
    pace.finish()

    assert in_between == [(0.25, 1), (0.5, 2)]
    assert heard == [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)]


SYNCHRONISES = {"aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.unique2"}
"""Operations for which a GPU must have finished: their result is a number on the CPU, or their size depends on values."""


class Waits(TorchDispatchMode):
    """Lists the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.seen: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = str(func.overloadpacket)
        if name in SYNCHRONISES:
            self.seen.append(name)
        return func(*args, **kwargs or {})


def test_nothing_is_asked_of_the_device_on_the_way(network: nn.Module, config: Callable[..., ServiceConfig]) -> None:
    """Windows are sent without reading a value: the one wait is at the end of the stage."""
    with Waits() as waits:
        infer(network, torch.randn(1, 12, 12, 8), config())

    assert waits.seen == []
    with Waits() as waits:
        float(torch.ones(2).sum())
    assert waits.seen == ["aten._local_scalar_dense"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_device_that_gives_no_value_away_infers(
    dtype: torch.dtype | None, network: nn.Module, config: Callable[..., ServiceConfig]
) -> None:
    """Torch's device `meta` computes shapes, and reading from it, or mixing it with the CPU, is an error: nothing does."""
    image = torch.randn(1, 21, 12, 8)
    engine = Cast(network, dtype, torch.channels_last_3d) if dtype else network

    logits = infer(engine.to("meta"), image, config())

    assert (logits.dtype, logits.device.type, tuple(logits.shape)) == (torch.float16, "meta", (3, 21, 12, 8))
    with pytest.raises(NotImplementedError):
        infer_module._half_logits(engine, image, config(), lambda _done: None, 1)  # sums on the CPU


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 8, 8), (21, 13, 8), (40, 40, 40)], ids=str)
def test_a_gpu_infers_alike(
    shape: tuple[int, ...], network: nn.Module, config: Callable[..., ServiceConfig], gpu_device: torch.device
) -> None:
    """Batches, sums and rounding on the device give the CPU's logits within float32's precision, then float16's."""
    prepare(gpu_device)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    expected = infer(network, image, config())
    heard: list[float] = []

    actual = infer(network.to(gpu_device), image, config(), heard.append)

    assert actual.device.type == gpu_device.type
    torch.testing.assert_close(actual.cpu(), expected, rtol=2e-3, atol=2e-3)
    assert heard == sorted(heard)
    assert heard[-1] == 1


@pytest.mark.gpu
def test_a_gpu_waits_for_events_only(
    network: nn.Module, config: Callable[..., ServiceConfig], gpu_device: torch.device
) -> None:
    """Between the copy to the device and the end no operation synchronises: CUDA itself would raise an error."""
    image = torch.randn(1, 40, 40, 40).to(gpu_device)
    network.to(gpu_device)
    expected = infer(network, image, config())
    weights = gaussian_weights(config().patch_size).to(gpu_device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_module, "gaussian_weights", lambda _patch_size: weights)
        with no_waiting(gpu_device):
            actual = infer(network, image, config())

    assert torch.equal(actual, expected)


@pytest.mark.gpu
def test_a_gpu_without_room_for_the_sums_leaves_them_to_the_cpu(
    network: nn.Module, config: Callable[..., ServiceConfig], gpu_device: torch.device
) -> None:
    """With a real limit on the device's memory the case is computed with less of it, and then again without."""
    prepare(gpu_device)
    image, declared = torch.randn(1, 128, 128, 128), config(patch_size=(64, 64, 64))
    expected = infer(network, image, declared)
    network.to(gpu_device)
    if gpu_device.type == "cuda":
        infer(network, image[:, :64, :64, :64], declared)  # loads the libraries, which need memory, too
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(gpu_device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(gpu_device) + (24 << 20)) / total)
    try:
        logits, placement = infer_within_memory(network, [image], declared, lambda: network)
    finally:
        if gpu_device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)

    assert placement == ("device" if gpu_device.type == "cpu" else "device, sums on the CPU")
    torch.testing.assert_close(logits[0].cpu(), expected, rtol=2e-3, atol=2e-3)
    assert infer_within_memory(network, [image], declared, lambda: network)[1] == "device"
