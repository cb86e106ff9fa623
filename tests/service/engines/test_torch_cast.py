from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from service.bundle.card import Precision
from service.engines import torch_cast
from service.engines.check import check, example_window
from service.engines.torch_cast import Cast, cast
from service.errors import EngineDisagrees

CPU = torch.device("cpu")
WINDOW = example_window(1, (16, 16, 16), CPU)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "InstanceNorm": lambda: UNet(3, 1, 3, [8, 16], [2], num_res_units=2),
    "GroupNorm": lambda: SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_half_the_weights_give_nearly_the_same_logits(
    name: str, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """In both memory formats the logits are float32 and close, but not equal, to those of float32 weights."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()

    with torch.inference_mode():
        actual, expected = Cast(network, dtype, memory_format)(WINDOW), network(WINDOW)

    assert actual.dtype == torch.float32
    assert not torch.equal(actual, expected)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_network_itself_is_unchanged() -> None:
    """Weights are copied, so the float32 network remains for comparison."""
    network = NETWORKS["GroupNorm"]().eval()

    cast(network, WINDOW, "bf16")

    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("faster", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_the_probe_chooses_the_faster_format(monkeypatch: pytest.MonkeyPatch, faster: torch.memory_format) -> None:
    """The memory format with the shorter time per window is selected."""
    monkeypatch.setattr(torch_cast, "_seconds", lambda network, _windows: 1.0 if network._format == faster else 2.0)

    actual = cast(nn.Conv3d(1, 2, 1), WINDOW, "bf16")

    assert isinstance(actual, Cast)
    assert actual._format == faster


def test_a_time_is_taken_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU returns before it has computed: the probe waits for it before and after each of its three runs."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch_cast, "synchronise", waited.append)

    torch_cast._seconds(nn.Conv3d(1, 2, 1), WINDOW)

    assert waited == [CPU] * 6


def test_an_overflow_does_not_pass_the_check() -> None:
    """float16 ends at 65504: a network whose values lie beyond is refused, and bfloat16 runs it."""
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 2, 1)).eval()
    for layer, gain in zip(network, (1e6, 1e-6), strict=True):
        nn.init.constant_(layer.weight, gain)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    check(cast(network, WINDOW, "bf16"), network, WINDOW, "bf16")
    with pytest.raises(EngineDisagrees, match="by nan on average"):
        check(cast(network, WINDOW, "fp16"), network, WINDOW, "fp16")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_computes_nearly_the_same(name: str, precision: Precision, gpu_device: torch.device) -> None:
    """On the device a batch of windows gives the CPU's logits within the precision."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    windows = WINDOW.expand(3, -1, -1, -1, -1)
    with torch.inference_mode():
        expected = network(WINDOW)
        on_device = windows.to(gpu_device)
        actual = cast(network.to(gpu_device), on_device, precision)(on_device).cpu()

    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()
